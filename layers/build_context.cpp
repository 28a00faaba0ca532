#include "layers/build_context.h"

#include <algorithm>
#include <cmath>

#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

// A rank's even share of `extent`, which `parts` must divide.
int64_t share_of(int64_t extent, int parts, const std::string& name) {
  require(extent % parts == 0, "{}: {} cannot be split over {} ranks", name, extent, parts);
  return extent / parts;
}

}  // namespace

Parameter& BuildContext::column_parallel(const std::string& name, int64_t out, int64_t in,
                                         float std) const {
  const int64_t rows = share_of(out, dist.tp().size(), name);
  return store.add({.name = name,
                    .global_shape = {out, in},
                    .offset = {dist.tp().rank() * rows, 0},
                    .extent = {rows, in},
                    .group = ParameterGroup::sharded,
                    .dtype = compute_dtype,
                    .decay = true,
                    .hidden_matrices = 1,
                    .init = Init::normal(std)});
}

Parameter& BuildContext::row_parallel(const std::string& name, int64_t out, int64_t in,
                                      float std) const {
  const int64_t columns = share_of(in, dist.tp().size(), name);
  return store.add({.name = name,
                    .global_shape = {out, in},
                    .offset = {0, dist.tp().rank() * columns},
                    .extent = {out, columns},
                    .group = ParameterGroup::sharded,
                    .dtype = compute_dtype,
                    .decay = true,
                    .hidden_matrices = 1,
                    .init = Init::normal(std)});
}

Parameter& BuildContext::sharded_vector(const std::string& name, int64_t width, Init init) const {
  const int64_t local = share_of(width, dist.tp().size(), name);
  return store.add({.name = name,
                    .global_shape = {width},
                    .offset = {dist.tp().rank() * local},
                    .extent = {local},
                    .group = ParameterGroup::sharded,
                    .dtype = DType::f32,
                    .decay = false,
                    .init = init});
}

Parameter& BuildContext::replicated_weight(const std::string& name, Shape shape, float std,
                                           int hidden_matrices) const {
  return store.add({.name = name,
                    .global_shape = shape,
                    .offset = {0, 0},
                    .extent = shape,
                    .group = ParameterGroup::replicated,
                    .dtype = compute_dtype,
                    .decay = true,
                    .hidden_matrices = hidden_matrices,
                    .init = Init::normal(std)});
}

Parameter& BuildContext::router_weight(const std::string& name, Shape shape, float std,
                                       int hidden_matrices) const {
  return store.add({.name = name,
                    .global_shape = shape,
                    .offset = {0, 0},
                    .extent = shape,
                    .group = ParameterGroup::replicated,
                    .dtype = DType::f32,
                    .decay = true,
                    .hidden_matrices = hidden_matrices,
                    .init = Init::normal(std)});
}

Parameter& BuildContext::replicated_vector(const std::string& name, int64_t width,
                                           Init init) const {
  return store.add({.name = name,
                    .global_shape = {width},
                    .offset = {0},
                    .extent = {width},
                    .group = ParameterGroup::replicated,
                    .dtype = DType::f32,
                    .decay = false,
                    .init = init});
}

Parameter& BuildContext::expert_weight(const std::string& name, int64_t out, int64_t in, float std,
                                       int hidden_matrices) const {
  const int64_t local = share_of(config.num_experts, dist.ep().size(), name);
  return store.add({.name = name,
                    .global_shape = {config.num_experts, out, in},
                    .offset = {dist.ep().rank() * local, 0, 0},
                    .extent = {local, out, in},
                    .group = ParameterGroup::expert,
                    .dtype = compute_dtype,
                    .decay = true,
                    .hidden_matrices = hidden_matrices,
                    .init = Init::normal(std)});
}

int64_t BuildContext::first_vocab_id() const {
  const int tp = dist.tp().size();
  const int64_t run = (config.vocab_size + tp - 1) / tp;
  return std::min(config.vocab_size, dist.tp().rank() * run);
}

int64_t BuildContext::local_vocab_size() const {
  const int tp = dist.tp().size();
  const int64_t run = (config.vocab_size + tp - 1) / tp;
  return std::min(config.vocab_size - first_vocab_id(), run);
}

Parameter& BuildContext::vocab_parallel(const std::string& name, float std, bool is_head) const {
  const bool pads = is_head && stream.device().kind == DeviceKind::cuda;
  const int64_t spare = round_up(local_vocab_size(), kHeadRows) - local_vocab_size();
  return store.add({.name = name,
                    .global_shape = {config.vocab_size, config.hidden},
                    .offset = {first_vocab_id(), 0},
                    .extent = {local_vocab_size(), config.hidden},
                    .group = ParameterGroup::sharded,
                    .dtype = compute_dtype,
                    .decay = true,
                    .spare_rows = pads ? spare : 0,
                    .init = Init::normal(std)});
}

float BuildContext::residual_init_std() const {
  return init_std() / std::sqrt(2.0f * static_cast<float>(config.num_layers));
}

}  // namespace switchyard
