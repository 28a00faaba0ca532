#pragma once

#include "optim/update_rule.h"

namespace switchyard {

// The name of Muon's state tensor.
inline constexpr char kMuonMomentum[] = "muon_momentum";

// Muon (Jordan et al. 2024) as Moonlight trains with it (Liu et al. 2025, "Muon is Scalable for LLM
// Training", arXiv 2502.16982), for hidden matrices [out, in]:
//   M = momentum * M + g                                              (equation 1)
//   O = newton_schulz(g + momentum * M), or of M without nesterov     (equation 2)
//   W = W - lr * (0.2 sqrt(max(out, in)) O + weight_decay * W)        (equation 4)
// An orthogonal O has entries of root mean square 1 / sqrt(max(out, in)) (lemma 1). The factor
// makes that 0.2, as in AdamW's updates, so that lr and weight decay can be those of AdamW.
class Muon : public MatrixRule {
 public:
  explicit Muon(const OptimizerConfig& config) : config_(config) {}

  std::vector<std::string> state_names() const override { return {kMuonMomentum}; }
  void prepare(Stream&, const UpdateStep&, const OwnedRun&, TensorView direction) const override;
  void transform(Stream&, Workspace&, TensorView matrix) const override;
  void apply(Stream&, const UpdateStep&, const OwnedRun&, const Shape& matrix,
             TensorView direction) const override;

 private:
  OptimizerConfig config_;
};

}  // namespace switchyard
