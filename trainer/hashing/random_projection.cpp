#include "trainer/hashing/random_projection.h"

#include <fmt/format.h>

#include <Eigen/QR>
#include <algorithm>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// [rows, columns] of N(0, 1)
Eigen::MatrixXd gaussian(RandomKey key, int64_t rows, int64_t columns) {
  Tensor drawn({rows, columns}, DType::f32);
  Stream stream;
  init_normal(stream, key, 1.0f, drawn.shape(), {0, 0}, drawn);
  return Eigen::Map<const RowMajor>(drawn.data<float>(), rows, columns).cast<double>();
}

// The Q of the QR decomposition in which R has a positive diagonal. It is unique, and makes the Q
// of a Gaussian matrix uniformly distributed (Mezzadri 2007).
//   m, result  [rows, columns], rows >= columns
Eigen::MatrixXd orthonormal_columns(const Eigen::MatrixXd& m) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(m);
  const Eigen::VectorXd signs =
      qr.matrixQR().diagonal().unaryExpr([](double r) { return r < 0.0 ? -1.0 : 1.0; });
  return qr.householderQ() * Eigen::MatrixXd::Identity(m.rows(), m.cols()) * signs.asDiagonal();
}

}  // namespace

Tensor random_projection(HashInit init, RandomKey key, int64_t head_dim, int bits) {
  // The vectors along the shorter side are orthonormal: the columns of W, or its rows.
  const bool by_columns = bits <= head_dim;
  Eigen::MatrixXd vectors =
      gaussian(key, std::min<int64_t>(bits, head_dim), std::max<int64_t>(bits, head_dim))
          .transpose();
  if (init == HashInit::orthogonal) vectors = orthonormal_columns(vectors);
  Tensor weight({head_dim, bits}, DType::f32);
  Eigen::Map<RowMajor> w(weight.data<float>(), head_dim, bits);
  if (by_columns) {
    w = vectors.cast<float>();
  } else {
    w = vectors.transpose().cast<float>();
  }
  return weight;
}

RandomKey projection_key(uint64_t seed, int layer, int kv_head) {
  return {seed, stream_id(fmt::format("hash.layers.{}.kv_heads.{}", layer, kv_head))};
}

HashWeights random_hash_weights(uint64_t seed, HashInit init, const ModelConfig& model, int bits,
                                int dense_layers) {
  require(bits > 0 && bits % 32 == 0,
          "a code of {} bits does not fill words of 32; set hash.bits to a multiple of 32", bits);
  HashWeights weights{.bits = bits,
                      .head_dim = model.head_dim,
                      .num_kv_heads = model.num_kv_heads,
                      .num_layers = model.num_layers,
                      .checkpoint_fingerprint = {},
                      .settings = {},
                      .layers = {}};
  weights.layers.resize(static_cast<size_t>(model.num_layers));
  for (int layer = dense_layers; layer < model.num_layers; ++layer) {
    Tensor& stack = weights.layers[static_cast<size_t>(layer)].keys;
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
