#pragma once

#include <fmt/core.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "kernels/runtime/bfloat16.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/memory.h"

namespace switchyard {

// f64 and i64 serve host-side reductions (norms, counts); ops compute in f32 and bf16.
enum class DType : uint8_t { f32, bf16, f64, i32, i64, u16, u8 };
SWITCHYARD_ENUM_NAMES(DType, f32, bf16, f64, i32, i64, u16, u8)

size_t size_of(DType dtype);

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bfloat16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::i64;
}
template <>
constexpr DType dtype_of<uint16_t>() {
  return DType::u16;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::u8;
}

// Up to four extents, row-major. A value.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i]; }
  int64_t num_elements() const;
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }

  bool operator==(const Shape&) const = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

std::string to_string(const Shape& shape);  // "[4, 512]"

}  // namespace switchyard

// Messages take a shape itself, so that it becomes text only where there is something to say.
template <>
struct fmt::formatter<switchyard::Shape> : fmt::formatter<std::string_view> {
  fmt::format_context::iterator format(const switchyard::Shape& shape,
                                       fmt::format_context& context) const;
};

namespace switchyard {

// Read-only, contiguous, row-major, non-owning. A default-constructed view is empty and stands for
// an optional operand that is not given.
class ConstTensorView {
 public:
  ConstTensorView() = default;
  ConstTensorView(const void* data, Shape shape, DType dtype, Device device = {})
      : data_(const_cast<void*>(data)), shape_(shape), dtype_(dtype), device_(device) {}

  // Throws Error unless T is the dtype.
  template <class T>
  const T* data() const {
    check_dtype(dtype_of<T>());
    return static_cast<const T*>(data_);
  }
  const void* raw() const { return data_; }

  explicit operator bool() const { return data_ != nullptr; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const;  // negative i counts from the last
  int64_t num_elements() const { return shape_.num_elements(); }
  size_t num_bytes() const { return static_cast<size_t>(num_elements()) * size_of(dtype_); }

  // The same elements under another shape.
  ConstTensorView reshape(Shape shape) const;
  // `count` slices along the first dimension, from `begin` on.
  ConstTensorView rows(int64_t begin, int64_t count) const;

 protected:
  // Kernels ask for every row, so that only a comparison may be left of this.
  void check_dtype(DType wanted) const {
    if (dtype_ != wanted) [[unlikely]]
      throw_other_dtype(wanted);
  }
  [[noreturn]] void throw_other_dtype(DType wanted) const;
  void* row_address(int64_t begin, int64_t count, Shape* shape) const;

  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_;
};

// A ConstTensorView whose elements may be written.
class TensorView : public ConstTensorView {
 public:
  TensorView() = default;
  TensorView(void* data, Shape shape, DType dtype, Device device = {})
      : ConstTensorView(data, shape, dtype, device) {}

  template <class T>
  T* data() const {
    check_dtype(dtype_of<T>());
    return static_cast<T*>(data_);
  }
  void* raw() const { return data_; }

  TensorView reshape(Shape shape) const;
  TensorView rows(int64_t begin, int64_t count) const;
};

// Owns its memory; for long-lived data only (parameters, optimizer state, tables).
class Tensor {
 public:
  Tensor() = default;
  // Zero-filled. Throws OutOfMemory with `name` in the message.
  Tensor(Shape shape, DType dtype, Device device = {}, std::string_view name = "a tensor");

  // False when default-constructed, as for optional members.
  explicit operator bool() const { return buffer_.data() != nullptr; }
  TensorView view() { return {buffer_.data(), shape_, dtype_, buffer_.device()}; }
  ConstTensorView view() const { return {buffer_.data(), shape_, dtype_, buffer_.device()}; }
  operator TensorView() { return view(); }             // NOLINT: lending is free
  operator ConstTensorView() const { return view(); }  // NOLINT
  template <class T>
  T* data() {
    return view().data<T>();
  }
  template <class T>
  const T* data() const {
    return view().data<T>();
  }

  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  int64_t num_elements() const { return shape_.num_elements(); }

 private:
  Buffer buffer_;
  Shape shape_;
  DType dtype_ = DType::f32;
};

// Host memory as a one-dimensional view.
template <class T>
TensorView view_of(std::span<T> values) {
  return {values.data(), Shape{static_cast<int64_t>(values.size())}, dtype_of<T>()};
}
template <class T>
ConstTensorView view_of(std::span<const T> values) {
  return {values.data(), Shape{static_cast<int64_t>(values.size())}, dtype_of<T>()};
}

}  // namespace switchyard
