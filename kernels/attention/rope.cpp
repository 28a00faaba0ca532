#include "kernels/attention/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {

namespace {

// 0 up to `begin`, 1 from `end` on, and linear between them.
double ramp(double x, double begin, double end) {
  return std::clamp((x - begin) / (end - begin), 0.0, 1.0);
}

// The share of `factor` by which pair `i`, whose angle per position is `frequency`, is divided: 0
// for a pair that is left alone.
double stretched_share(const RopeConfig& config, int64_t i, double frequency) {
  const RopeScaling& s = config.scaling;
  const auto context = static_cast<double>(s.original_seq_len);
  if (s.type == RopeScalingType::linear) return 1.0;
  if (s.type == RopeScalingType::llama3) {
    const double turns = context * frequency / (2.0 * std::numbers::pi);
    return 1.0 - ramp(turns, s.low_freq_factor, s.high_freq_factor);
  }
  // YaRN's limits are the whole numbers around the pairs that turn beta times.
  const auto dim = static_cast<double>(config.rotary_dim);
  const auto pair_of = [&](double turns) {
    return dim * std::log(context / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(config.theta));
  };
  const double begin = std::max(std::floor(pair_of(s.beta_fast)), 0.0);
  const double end = std::min(std::ceil(pair_of(s.beta_slow)), dim - 1.0);
  return ramp(static_cast<double>(i), begin, begin == end ? end + 0.001 : end);
}

}  // namespace

std::vector<double> rope_frequencies(const RopeConfig& given) {
  RopeConfig config = given;
  if (config.rotary_dim == 0) config.rotary_dim = config.head_dim;
  require(config.head_dim % 2 == 0, "rope rotates halves of a head: head_dim must be even, not {}",
          config.head_dim);
  require(
      config.rotary_dim % 2 == 0 && config.rotary_dim > 0 && config.rotary_dim <= config.head_dim,
      "rotary_dim must be even and at most head_dim = {}, not {}", config.head_dim,
      config.rotary_dim);
  std::vector<double> frequencies(static_cast<size_t>(config.rotary_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double frequency = std::pow(
        config.theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim));
    frequencies[i] = frequency;
    if (config.scaling.type == RopeScalingType::none) continue;
    const double share = stretched_share(config, static_cast<int64_t>(i), frequency);
    frequencies[i] = (1.0 - share) * frequency + share * frequency / config.scaling.factor;
  }
  return frequencies;
}

double rope_attention_factor(const RopeScaling& scaling) {
  if (scaling.type != RopeScalingType::yarn) return 1.0;
  if (scaling.attention_factor > 0.0) return scaling.attention_factor;
  return 0.1 * std::log(scaling.factor) + 1.0;
}

RopeTable make_rope_table(Stream& stream, int64_t seq_len, const RopeConfig& config) {
  const std::vector<double> frequencies = rope_frequencies(config);
  const double factor = rope_attention_factor(config.scaling);
  const auto half = static_cast<int64_t>(frequencies.size());
  RopeTable table{Tensor({seq_len, half}, DType::f32, stream.device()),
                  Tensor({seq_len, half}, DType::f32, stream.device())};
  if (stream.device().counts_only) return table;
  HostMirror cos(table.cos), sin(table.sin);
  for (int64_t t = 0; t < seq_len; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(t) * frequencies[static_cast<size_t>(i)];
      cos.host().data<float>()[t * half + i] = static_cast<float>(factor * std::cos(angle));
      sin.host().data<float>()[t * half + i] = static_cast<float>(factor * std::sin(angle));
    }
  }
  cos.upload(stream);
  sin.upload(stream);
  return table;
}

namespace {

void check_tables(ConstTensorView cos, ConstTensorView sin, int64_t last_position,
                  int64_t head_dim) {
  if (!cos) return;
  require(cos.rank() == 2 && 2 * cos.dim(1) <= head_dim && sin.shape() == cos.shape(),
          "the rope tables {} do not fit head_dim {}", cos.shape(), head_dim);
  require(last_position <= cos.dim(0), "the rope tables end at position {}, {} is needed",
          cos.dim(0), last_position);
}

void check_heads(ConstTensorView qkv, ConstTensorView q, ConstTensorView k, ConstTensorView v) {
  require(q.rank() == 4 && k.rank() == 4, "q and k must be [batch, heads, seq_len, head_dim]");
  require_shape(k, {q.dim(0), k.dim(1), q.dim(2), q.dim(3)}, "k");
  require_shape(v, k.shape(), "v");
  require_shape(qkv, {q.dim(0) * q.dim(2), (q.dim(1) + 2 * k.dim(1)) * q.dim(3)}, "qkv");
  require_dtype(q, qkv.dtype(), "q");
  require_dtype(k, qkv.dtype(), "k");
  require_dtype(v, qkv.dtype(), "v");
}

}  // namespace

void split_qkv_forward(Stream& stream, ConstTensorView qkv, ConstTensorView cos,
                       ConstTensorView sin, const FirstPosition& first_position, TensorView q,
                       TensorView k, TensorView v) {
  check_heads(qkv, q, k, v);
  check_tables(cos, sin, first_position.on_host + q.dim(2), q.dim(3));
  SWITCHYARD_BODY(stream, split_qkv_forward)(stream, qkv, cos, sin, first_position, q, k, v);
}

void split_qkv_backward(Stream& stream, ConstTensorView dq, ConstTensorView dk, ConstTensorView dv,
                        ConstTensorView cos, ConstTensorView sin, TensorView dqkv) {
  check_heads(dqkv, dq, dk, dv);
  check_tables(cos, sin, dq.dim(2), dq.dim(3));
  SWITCHYARD_BODY(stream, split_qkv_backward)(stream, dq, dk, dv, cos, sin, dqkv);
}

void rope_in_place(Stream& stream, ConstTensorView cos, ConstTensorView sin,
                   const FirstPosition& first_position, bool inverse, TensorView x) {
  require(x.rank() == 4, "x has shape {}, expected [batch, heads, seq_len, head_dim]", x.shape());
  require(static_cast<bool>(cos), "rope_in_place needs cos and sin tables");
  check_tables(cos, sin, first_position.on_host + x.dim(2), x.dim(3));
  SWITCHYARD_BODY(stream, rope_in_place)(stream, cos, sin, first_position, inverse, x);
}

namespace cpu {
namespace {

// Rotates the first 2 * half channels; sign = -1 rotates back. y may be x.
template <class T>
void rotate(const T* x, const float* cos, const float* sin, float sign, int64_t half, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const auto x1 = static_cast<float>(x[i]), x2 = static_cast<float>(x[half + i]);
    const float s = sign * sin[i];
    y[i] = x1 * cos[i] - x2 * s;
    y[half + i] = x2 * cos[i] + x1 * s;
  }
}

// The address of head `h` of the fused projection after the split.
struct HeadOf {
  int64_t heads, kv_heads, seq_len, head_dim;

  template <class T>
  T* address(int64_t b, int64_t h, int64_t t, T* q, T* k, T* v) const {
    if (h < heads) return q + ((b * heads + h) * seq_len + t) * head_dim;
    h -= heads;
    if (h < kv_heads) return k + ((b * kv_heads + h) * seq_len + t) * head_dim;
    return v + ((b * kv_heads + h - kv_heads) * seq_len + t) * head_dim;
  }
};

}  // namespace

void split_qkv_forward(Stream&, ConstTensorView qkv, ConstTensorView cos, ConstTensorView sin,
                       const FirstPosition& first_position, TensorView q, TensorView k,
                       TensorView v) {
  const HeadOf to{q.dim(1), k.dim(1), q.dim(2), q.dim(3)};
  const int64_t all_heads = to.heads + 2 * to.kv_heads, half = cos ? cos.dim(1) : 0;
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < qkv.dim(0); ++token) {
      const int64_t b = token / to.seq_len, t = token % to.seq_len;
      const int64_t table = (first_position.on_host + t) * half;
      for (int64_t h = 0; h < all_heads; ++h) {
        const T* from = qkv.data<T>() + (token * all_heads + h) * to.head_dim;
        T* target = to.address(b, h, t, q.data<T>(), k.data<T>(), v.data<T>());
        const int64_t turned = h < to.heads + to.kv_heads ? 2 * half : 0;
        if (turned > 0) {
          rotate(from, cos.data<float>() + table, sin.data<float>() + table, 1.0f, half, target);
        }
        std::copy(from + turned, from + to.head_dim, target + turned);
      }
    }
  });
}

void split_qkv_backward(Stream&, ConstTensorView dq, ConstTensorView dk, ConstTensorView dv,
                        ConstTensorView cos, ConstTensorView sin, TensorView dqkv) {
  const HeadOf of{dq.dim(1), dk.dim(1), dq.dim(2), dq.dim(3)};
  const int64_t all_heads = of.heads + 2 * of.kv_heads, half = cos ? cos.dim(1) : 0;
  dispatch_compute_dtype(dq.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < dqkv.dim(0); ++token) {
      const int64_t b = token / of.seq_len, t = token % of.seq_len;
      for (int64_t h = 0; h < all_heads; ++h) {
        const T* from = of.address(b, h, t, dq.data<T>(), dk.data<T>(), dv.data<T>());
        T* target = dqkv.data<T>() + (token * all_heads + h) * of.head_dim;
        const int64_t turned = h < of.heads + of.kv_heads ? 2 * half : 0;
        if (turned > 0) {
          rotate(from, cos.data<float>() + t * half, sin.data<float>() + t * half, -1.0f, half,
                 target);
        }
        std::copy(from + turned, from + of.head_dim, target + turned);
      }
    }
  });
}

void rope_in_place(Stream&, ConstTensorView cos, ConstTensorView sin,
                   const FirstPosition& first_position, bool inverse, TensorView x) {
  const int64_t seq_len = x.dim(2), head_dim = x.dim(3), half = cos.dim(1);
  dispatch_compute_dtype(x.dtype(), [&]<class T>() {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < x.dim(0) * x.dim(1) * seq_len; ++row) {
      const int64_t table = (first_position.on_host + row % seq_len) * half;
      T* vector = x.data<T>() + row * head_dim;
      rotate(vector, cos.data<float>() + table, sin.data<float>() + table, inverse ? -1.0f : 1.0f,
             half, vector);
    }
  });
}

}  // namespace cpu
}  // namespace switchyard
