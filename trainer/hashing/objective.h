#pragma once

#include <cstdint>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "trainer/config/hash_config.h"

namespace switchyard {

// (query, key, label) triplets of one key/value head, grouped by sequence. In host memory.
struct HashPairs {
  Tensor q;                          // [group, sequences, head_dim]
  Tensor k;                          // [rows, head_dim]
  Tensor labels;                     // [group, rows]: of each query head and the row's key
  std::vector<int64_t> row_offsets;  // [sequences + 1]; no sequence is empty

  int64_t group() const { return q.shape()[0]; }
  int64_t sequences() const { return q.shape()[1]; }
  int64_t rows() const { return k.shape()[0]; }
};

struct HashLoss {
  double ranking = 0.0;  // of RankingObjective, which has no other term
  double similarity = 0.0;
  double balance = 0.0;
  double decorrelation = 0.0;
  double orthogonality = 0.0;  // ||W'W - I||_F, not part of the sum

  double total() const { return ranking + similarity + balance + decorrelation; }
};

// The relaxed objective of HATA (arXiv 2506.02572, equation 9) for one head, with means over pairs
// instead of sums, which diverge at the paper's learning rate. s are the labels, there are R rows
// and S sequences of m_j keys, and h(x) = 2 sigmoid(sigma x W) - 1:
//   similarity     epsilon / R sum over g, j, i of s_gji ||h(q_gj) - h(k_ji)||^2
//   balance        eta / S     sum over j of ||1 / m_j sum over i of h(k_ji)||^2
//   decorrelation  lambda (sqrt(||W'W - I||_F^2 + delta^2) - delta)
// delta = decorrelation_softness. With delta = 0, the paper's norm, the gradient has the same
// length everywhere but at the minimum, and steps at a fixed rate jump back and forth across it.
class HashObjective {
 public:
  // The pairs must outlive this object.
  HashObjective(const HashPairs& pairs, const HashTrainingConfig& config)
      : pairs_(pairs), config_(config) {}

  // Returns the loss at `weight` and writes its gradient. The same bits for any number of threads.
  //   weight, dweight  [head_dim, bits] f32; dweight is overwritten
  HashLoss gradient(ConstTensorView weight, TensorView dweight) const;

 private:
  struct Part;

  void add_sequences(ConstTensorView weight, int64_t begin, int64_t end, Part& part) const;
  void add_sequence(ConstTensorView weight, int64_t sequence, Part& part) const;
  void add_queries(Part& part) const;
  void add_keys(Part& part) const;

  const HashPairs& pairs_;
  const HashTrainingConfig& config_;
};

// lambda (sqrt(||W'W - I||_F^2 + delta^2) - delta), added to `loss` with its gradient in dweight.
void add_decorrelation(const HashTrainingConfig& config, ConstTensorView weight, HashLoss& loss,
                       TensorView dweight);

}  // namespace switchyard
