#include "trainer/hashing/random_projection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// [rows, columns], row-major, in double.
struct Matrix {
  int64_t rows, columns;
  std::vector<double> values;

  double& at(int64_t row, int64_t column) {
    return values[static_cast<size_t>(row * columns + column)];
  }
};

Matrix gaussian(RandomKey key, int64_t rows, int64_t columns) {
  Tensor drawn({rows, columns}, DType::f32);
  Stream stream;
  init_normal(stream, key, 1.0f, drawn.shape(), {0, 0}, drawn);
  const float* values = drawn.data<float>();
  return {rows, columns, {values, values + drawn.num_elements()}};
}

// Adds to vector `to` the multiple of vector `from` that `factor` says; vectors are rows.
void add_row(Matrix& m, int64_t from, double factor, int64_t to) {
  for (int64_t c = 0; c < m.columns; ++c) m.at(to, c) += factor * m.at(from, c);
}

double dot_rows(Matrix& m, int64_t a, int64_t b) {
  double sum = 0.0;
  for (int64_t c = 0; c < m.columns; ++c) sum += m.at(a, c) * m.at(b, c);
  return sum;
}

// The Q of the QR decomposition whose R has a positive diagonal, which alone is unique and makes Q
// of a Gaussian matrix uniformly distributed (Mezzadri 2007); in place, by rows. Gram-Schmidt run
// twice per vector is orthogonal to rounding ("twice is enough", Giraud et al. 2005).
void orthonormalize_rows(Matrix& m) {
  for (int64_t row = 0; row < m.rows; ++row) {
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t done = 0; done < row; ++done) add_row(m, done, -dot_rows(m, done, row), row);
    }
    const double length = std::sqrt(dot_rows(m, row, row));
    for (int64_t c = 0; c < m.columns; ++c) m.at(row, c) /= length;
  }
}

}  // namespace

Tensor random_projection(HashInit init, RandomKey key, int64_t head_dim, int bits) {
  // The shorter side's vectors are the orthonormal ones: columns of W, or its rows.
  const bool by_columns = bits <= head_dim;
  Matrix m = gaussian(key, std::min<int64_t>(bits, head_dim), std::max<int64_t>(bits, head_dim));
  if (init == HashInit::orthogonal) orthonormalize_rows(m);
  Tensor weight({head_dim, bits}, DType::f32);
  float* out = weight.data<float>();
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int64_t b = 0; b < bits; ++b) {
      out[d * bits + b] = static_cast<float>(by_columns ? m.at(b, d) : m.at(d, b));
    }
  }
  return weight;
}

RandomKey projection_key(uint64_t seed, int layer, int kv_head) {
  return {seed, stream_id(fmt::format("hash.layers.{}.kv_heads.{}", layer, kv_head))};
}

HashWeights random_hash_weights(uint64_t seed, HashInit init, const ModelConfig& model, int bits,
                                int dense_layers) {
  require(bits > 0 && bits % 32 == 0, "a code of {} bits does not fill words of 32", bits);
  HashWeights weights{.bits = bits,
                      .head_dim = model.head_dim,
                      .num_kv_heads = model.num_kv_heads,
                      .num_layers = model.num_layers,
                      .checkpoint_fingerprint = {},
                      .settings = {},
                      .layers = {}};
  weights.layers.resize(static_cast<size_t>(model.num_layers));
  for (int layer = dense_layers; layer < model.num_layers; ++layer) {
    Tensor& stack = weights.layers[static_cast<size_t>(layer)];
    stack = Tensor({model.num_kv_heads, model.head_dim, bits}, DType::f32);
    for (int head = 0; head < model.num_kv_heads; ++head) {
      const Tensor one =
          random_projection(init, projection_key(seed, layer, head), model.head_dim, bits);
      std::copy_n(one.data<float>(), one.num_elements(), stack.view().rows(head, 1).data<float>());
    }
  }
  return weights;
}

}  // namespace switchyard
