#pragma once

#include <cstdint>
#include <vector>

#include "layers/decoding/hash_tensors.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// What the ranking objective learns, or the gradient of it.
struct RankingParameters {
  HashTensors hash;  // of one head, with planes: [1, head_dim, columns], the same, [1, columns]
  Tensor log_scale;  // [1]: of the scores, beside the scale that suits a tight frame

  static RankingParameters zeros(int64_t head_dim, int64_t columns);
};

// A loss on the ranking itself: the cross-entropy, in nats, of the attention that the codes' scores
// stand for, relative to the true attention of the group's queries, mean over queries:
//   x_i = k_i W - t,  y_q = (sum over g of q_g) W'
//   z_qi = scale a_i sum over j of y_qj v_ij, with the levels v_i of x_i and its length a_i
//   p_q = mean over the group of softmax(q_g . k / sqrt(head_dim))
//   loss = - mean over q, sum over i of p_qi log softmax(z_q)_i
// over the keys i that query q sees. z is the score by which decoding ranks keys (HashProjection)
// before the rounding of y. In the backward pass a_i v_i stands for x_i, to which it is near: the
// rounding is passed straight through (Bengio et al. 2013, arXiv 1308.3432). Then the loss has no
// gradient in t, which adds the same to a query's scores of all keys; t follows W (`centre`).
class RankingObjective {
 public:
  // The head must outlive this object. Each `queries_per_sequence` queries share a sequence's keys.
  RankingObjective(const HeadQueryKeys& head, int64_t queries_per_sequence);

  int64_t sequences() const { return head_.queries() / per_sequence_; }

  // Sets t to m W, where m is the mean of all keys.
  void centre(HashTensors& hash) const;

  // Returns the loss of one sequence's queries and writes its gradient but for that of t, the same
  // bits for any number of threads. With a null gradient only the loss.
  double gradient(const RankingParameters& at, int64_t sequence, RankingParameters* gradient) const;

 private:
  struct Pass;

  void forward(const RankingParameters& at, Pass& pass) const;
  Tensor true_attention(const Pass& pass) const;
  double add_loss(Pass& pass, bool with_gradient) const;
  static float through_product(Pass& pass);
  void backward(const RankingParameters& at, Pass& pass, RankingParameters& gradient) const;

  const HeadQueryKeys& head_;
  int64_t per_sequence_;
  Tensor mean_key_;  // [1, head_dim]
};

}  // namespace switchyard
