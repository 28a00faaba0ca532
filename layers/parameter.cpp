#include "layers/parameter.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <span>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/host_mirror.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

// In bytes. Vector accesses and cuBLAS's fast kernels need addresses of this alignment.
constexpr size_t kParameterAlignment = 16;

TensorView slice(TensorView flat, int64_t begin, const Shape& shape) {
  return flat.rows(begin, shape.num_elements()).reshape(shape);
}

void fill_ones(Stream& stream, TensorView tensor) {
  HostMirror mirror(tensor);
  std::fill_n(mirror.host().data<float>(), tensor.num_elements(), 1.0f);
  mirror.upload(stream);
}

void draw_initial_values(Stream& stream, uint64_t seed, const Parameter& parameter) {
  const ParameterSpec& spec = parameter.spec;
  Tensor drawn(spec.extent, DType::f32, stream.device(), "the initial values of " + spec.name);
  switch (spec.init.kind) {
    case Init::Kind::normal:
      init_normal(stream, {seed, stream_id(spec.name)}, spec.init.std, spec.global_shape,
                  spec.offset, drawn);
      break;
    case Init::Kind::ones:
      fill_ones(stream, drawn);
      break;
    case Init::Kind::zeros:
      break;
  }
  cast(stream, drawn, parameter.value);
  stream.synchronize();  // The memory of `drawn` is freed when this function returns.
}

std::span<const int64_t> row_dims(const Shape& shape) { return shape.dims().subspan(1); }

// Where in the buffer the next parameter begins.
int64_t begin_of_next(const FlatBuffer& buffer, const Shape& extent) {
  if (buffer.parameters.empty()) return 0;
  if (std::ranges::equal(row_dims(extent), row_dims(buffer.parameters.back()->spec.extent))) {
    return buffer.num_elements;
  }
  return round_up(buffer.num_elements,
                  static_cast<int64_t>(kParameterAlignment / size_of(buffer.dtype)));
}

// This rank's box and the spare rows.
Shape padded_extent(const ParameterSpec& spec) {
  if (spec.spare_rows == 0) return spec.extent;
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::ranges::copy(spec.extent.dims(), dims.begin());
  dims[0] += spec.spare_rows;
  return Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(spec.extent.rank())));
}

// One tensor over the neighbours `first` to `last`; `of` picks their values or their gradients.
TensorView fuse(const Parameter& first, const Parameter& last, TensorView Parameter::*of) {
  const TensorView head = first.*of;
  require(static_cast<bool>(head), "{} has no memory yet; call ParameterStore::materialize first",
          first.spec.name);
  const Shape &shape = first.spec.extent, &last_shape = last.spec.extent;
  const int64_t elements = last.flat_begin + last_shape.num_elements() - first.flat_begin;
  const auto dims = row_dims(shape);
  const int64_t row = std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
  require(first.spec.group == last.spec.group && first.spec.dtype == last.spec.dtype &&
              std::ranges::equal(dims, row_dims(last_shape)) && elements >= 0 && row > 0 &&
              elements % row == 0,
          "{} and {} do not lie side by side", first.spec.name, last.spec.name);
  std::array<int64_t, Shape::kMaxRank> fused{elements / row};
  std::ranges::copy(dims, fused.begin() + 1);
  const std::span<const int64_t> fused_dims(fused.data(), dims.size() + 1);
  return {head.raw(), Shape(fused_dims), head.dtype(), head.device()};
}

int64_t elements_of(const ParameterStore::BucketElements& elements, ParameterGroup group) {
  switch (group) {
    case ParameterGroup::sharded:
      return elements.sharded;
    case ParameterGroup::replicated:
      return elements.replicated;
    case ParameterGroup::expert:
      return elements.expert;
  }
  fail("unknown parameter group");
}

}  // namespace

std::string describe(const FlatBuffer& buffer) {
  const std::string& first = buffer.parameters.front()->spec.name;
  if (buffer.parameters.size() == 1) return first;
  return fmt::format("{} to {} ({} parameters)", first, buffer.parameters.back()->spec.name,
                     buffer.parameters.size());
}

Parameter& ParameterStore::add(ParameterSpec spec) {
  require(spec.offset.rank() == spec.global_shape.rank() &&
              spec.extent.rank() == spec.global_shape.rank(),
          "{}: offset and extent must have the rank of the global shape", spec.name);
  require(std::none_of(parameters_.begin(), parameters_.end(),
                       [&](const Parameter& p) { return p.spec.name == spec.name; }),
          "there are two parameters named {}", spec.name);
  parameters_.push_back({.spec = std::move(spec),
                         .flat_begin = 0,
                         .value = {},
                         .grad = {},
                         .padded_value = {},
                         .padded_grad = {}});
  Parameter& parameter = parameters_.back();
  FlatBuffer& buffer = buffer_for(parameter.spec.group, parameter.spec.dtype);
  buffer.last_stage = stage_;
  parameter.flat_begin = begin_of_next(buffer, parameter.spec.extent);
  buffer.num_elements = parameter.flat_begin + padded_extent(parameter.spec).num_elements();
  buffer.parameters.push_back(&parameter);
  return parameter;
}

int64_t ParameterStore::bucket_elements_of(int ranks) {
  return std::max(kBucketElements, kBucketElementsPerRank * ranks);
}

FlatBuffer& ParameterStore::buffer_for(ParameterGroup group, DType dtype) {
  // The parameters of a stage stay in one buffer, because layers fuse neighbours.
  const auto newest = std::find_if(buffers_.rbegin(), buffers_.rend(), [&](const FlatBuffer& b) {
    return b.group == group && b.dtype == dtype;
  });
  if (newest != buffers_.rend() && (newest->last_stage == stage_ ||
                                    newest->num_elements < elements_of(bucket_elements_, group))) {
    return *newest;
  }
  buffers_.push_back({.group = group,
                      .dtype = dtype,
                      .first_stage = stage_,
                      .last_stage = stage_,
                      .parameters = {},
                      .num_elements = 0,
                      .values = {},
                      .grads = {}});
  return buffers_.back();
}

void ParameterStore::materialize(Stream& stream, uint64_t seed, int world_size) {
  for (FlatBuffer& buffer : buffers_) {
    const int64_t padded = round_up(buffer.num_elements, int64_t{16} * world_size);
    buffer.values =
        Tensor({padded}, buffer.dtype, stream.device(), "the values of " + describe(buffer));
    buffer.grads =
        Tensor({padded}, DType::f32, stream.device(), "the gradients of " + describe(buffer));
    for (Parameter* p : buffer.parameters) {
      p->value = slice(buffer.values, p->flat_begin, p->spec.extent);
      p->grad = slice(buffer.grads, p->flat_begin, p->spec.extent);
      p->padded_value = slice(buffer.values, p->flat_begin, padded_extent(p->spec));
      p->padded_grad = slice(buffer.grads, p->flat_begin, padded_extent(p->spec));
      draw_initial_values(stream, seed, *p);
    }
  }
}

void ParameterStore::zero_grads(Stream& stream) {
  for (FlatBuffer& buffer : buffers_) fill_zero(stream, buffer.grads);
  for (Parameter& p : parameters_) p.gradient_is_stale = false;
}

// One range of each buffer is filled with zeros: that of the parameters whose gradients do not
// begin with a product, and of those between them.
void ParameterStore::forget_grads(Stream& stream) {
  for (FlatBuffer& buffer : buffers_) {
    int64_t begin = buffer.num_elements, end = 0;
    for (const Parameter* p : buffer.parameters) {
      if (p->gradient_is_product) continue;
      begin = std::min(begin, p->flat_begin);
      end = p->flat_begin + p->padded_grad.num_elements();
    }
    if (begin < end) fill_zero(stream, buffer.grads.view().rows(begin, end - begin));
    for (Parameter* p : buffer.parameters) {
      p->gradient_is_stale = p->flat_begin < begin || p->flat_begin >= end;
    }
  }
}

void ParameterStore::settle_grads(Stream& stream, FlatBuffer& buffer) {
  for (Parameter* p : buffer.parameters) {
    if (p->begin_gradient() == Accumulate::no) fill_zero(stream, p->padded_grad);
  }
}

void ParameterStore::await_values(Stream& stream, int stage) {
  for (FlatBuffer& buffer : buffers_) {
    if (buffer.arrival && buffer.first_stage <= stage) {
      std::exchange(buffer.arrival, nullptr)->wait(stream);
    }
  }
}

int64_t ParameterStore::num_elements() const {
  int64_t total = 0;
  for (const Parameter& p : parameters_) total += p.spec.extent.num_elements();
  return total;
}

TensorView ParameterStore::fused_value(const Parameter& first, const Parameter& last) const {
  return fuse(first, last, &Parameter::value);
}

TensorView ParameterStore::fused_grad(const Parameter& first, const Parameter& last) const {
  return fuse(first, last, &Parameter::grad);
}

}  // namespace switchyard
