#pragma once

#include <cstdint>
#include <vector>

#include "layers/decoding/hash_tensors.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// What the ranking objective learns, or the gradient of it.
struct RankingParameters {
  HashTensors hash;  // of one head, with planes: [1, head_dim, bits], the same, [1, bits]
  Tensor log_scale;  // [1]: of the scores, beside the scale that suits a tight frame

  static RankingParameters zeros(int64_t head_dim, int64_t bits);
};

// A loss on the ranking itself: the cross-entropy, in nats, of the attention that the codes' scores
// stand for, relative to the true attention of the group's queries, mean over queries:
//   x_i = k_i W - t,  y_q = (sum over g of q_g) W'
//   z_qi = scale |x_i| sum over j of y_qj sign(x_ij)
//   p_q = mean over the group of softmax(q_g . k / sqrt(head_dim))
//   loss = - mean over q, sum over i of p_qi log softmax(z_q)_i
// over the keys i that query q sees. z is the score by which decoding ranks keys (HashProjection)
// before the rounding of y. The sign is passed through in the backward pass as the derivative of
// tanh(x / width), with the standard deviation of the projected keys at the start as the width.
class RankingObjective {
 public:
  // The head must outlive this object. Each `queries_per_sequence` queries share a sequence's keys.
  //   start  projections at the start of learning, which decide the width
  RankingObjective(const HeadQueryKeys& head, int64_t queries_per_sequence,
                   const HashTensors& start);

  float width() const { return width_; }
  int64_t sequences() const { return head_.queries() / per_sequence_; }

  // Returns the loss of one sequence's queries and writes its gradient, the same bits for any
  // number of threads. With a null gradient only the loss.
  double gradient(const RankingParameters& at, int64_t sequence, RankingParameters* gradient) const;

 private:
  struct Pass;

  void forward(const RankingParameters& at, Pass& pass) const;
  Tensor true_attention(const Pass& pass) const;
  double add_loss(Pass& pass, bool with_gradient) const;
  static float through_product(Pass& pass, Tensor& dlengths);
  void backward(const RankingParameters& at, Pass& pass, RankingParameters& gradient) const;

  const HeadQueryKeys& head_;
  int64_t per_sequence_;
  float width_ = 1.0f;
};

}  // namespace switchyard
