#include "kernels/runtime/tensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/runtime/check.h"

namespace switchyard {

namespace {

// The bytes of any tensor can be counted in 64 bits. Files may claim any extents.
constexpr int64_t kMostElements = std::numeric_limits<int64_t>::max() / 8;

}  // namespace

size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::u16:
      return 2;
    case DType::u8:
      return 1;
  }
  fail("unknown dtype {}", static_cast<int>(dtype));
}

Shape::Shape(std::initializer_list<int64_t> dims)
    : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  require(rank_ <= kMaxRank, "a shape has at most {} dimensions, not {}", kMaxRank, rank_);
  int64_t elements = 1;
  for (const int64_t dim : dims) {
    require(dim >= 0, "a dimension is negative: {}", dim);
    require(dim <= kMostElements / elements, "a shape has more than {} elements", kMostElements);
    elements *= std::max<int64_t>(dim, 1);
  }
  std::copy(dims.begin(), dims.end(), dims_.begin());
}

int64_t Shape::num_elements() const {
  return std::accumulate(dims_.begin(), dims_.begin() + rank_, int64_t{1}, std::multiplies<>());
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank(); ++i) text += fmt::format("{}{}", i ? ", " : "", shape[i]);
  return text + "]";
}

int64_t ConstTensorView::dim(int i) const {
  const int index = i < 0 ? i + rank() : i;
  require(index >= 0 && index < rank(), "there is no dimension {} in shape {}", i, shape_);
  return shape_[index];
}

void ConstTensorView::throw_other_dtype(DType wanted) const {
  fail("the tensor is {}, but was read as {}", to_string(dtype_), to_string(wanted));
}

void* ConstTensorView::row_address(int64_t begin, int64_t count, Shape* shape) const {
  require(rank() >= 1 && begin >= 0 && count >= 0 && begin + count <= shape_[0],
          "rows [{}, {}) exceed shape {}", begin, begin + count, shape_);
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::copy_n(shape_.dims().begin(), rank(), dims.begin());
  dims[0] = count;
  *shape = Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(rank())));
  const int64_t row_elements =
      std::accumulate(dims.begin() + 1, dims.begin() + rank(), int64_t{1}, std::multiplies<>());
  return static_cast<std::byte*>(data_) +
         begin * row_elements * static_cast<int64_t>(size_of(dtype_));
}

ConstTensorView ConstTensorView::reshape(Shape shape) const {
  require(shape.num_elements() == num_elements(), "cannot reshape {} to {}", shape_, shape);
  return {data_, shape, dtype_, device_};
}

ConstTensorView ConstTensorView::rows(int64_t begin, int64_t count) const {
  Shape shape;
  void* address = row_address(begin, count, &shape);
  return {address, shape, dtype_, device_};
}

TensorView TensorView::reshape(Shape shape) const {
  require(shape.num_elements() == num_elements(), "cannot reshape {} to {}", shape_, shape);
  return {data_, shape, dtype_, device_};
}

TensorView TensorView::rows(int64_t begin, int64_t count) const {
  Shape shape;
  void* address = row_address(begin, count, &shape);
  return {address, shape, dtype_, device_};
}

namespace {

Buffer allocate(const Shape& shape, DType dtype, Device device, std::string_view name) {
  try {
    return Buffer(static_cast<size_t>(shape.num_elements()) * size_of(dtype), device);
  } catch (OutOfMemory& error) {
    error.set_purpose(fmt::format("{}, {} {}", name, to_string(dtype), shape));
    throw;
  }
}

}  // namespace

Tensor::Tensor(Shape shape, DType dtype, Device device, std::string_view name)
    : buffer_(allocate(shape, dtype, device, name)), shape_(shape), dtype_(dtype) {}

}  // namespace switchyard

fmt::format_context::iterator fmt::formatter<switchyard::Shape>::format(
    const switchyard::Shape& shape, fmt::format_context& context) const {
  return formatter<std::string_view>::format(to_string(shape), context);
}
