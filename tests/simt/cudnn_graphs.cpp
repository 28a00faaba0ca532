// The emulated cuDNN: attention in double, by the strides of the problem. It is there if
// SWITCHYARD_EMULATED_CUDNN is the number of bytes of scratch that each problem asks for.
#include "kernels/cuda/cudnn_graphs.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

#include "kernels/cuda/sizes.h"
#include "kernels/cuda/support.h"
#include "kernels/runtime/check.h"
#include "tests/simt/simt.h"

namespace switchyard::cuda {

struct AttentionPlans {
  std::set<CudnnProblem> problems;
};

namespace {

using Dims = CudnnProblem::Dims;

// A head of one sequence.
struct Head {
  int64_t first, row_stride;

  Head(const Dims& strides, int64_t b, int64_t h)
      : first(b * strides[0] + h * strides[1]), row_stride(strides[2]) {}
  int64_t row(int64_t t) const { return first + t * row_stride; }
};

double dot(const bfloat16* x, const bfloat16* y, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += double{float(x[i])} * double{float(y[i])};
  return sum;
}

class EmulatedAttention {
 public:
  EmulatedAttention(const CudnnProblem& problem, const CudnnOperands& operands)
      : p_(problem),
        o_(operands),
        q_strides_(CudnnProblem::head_major(p_.q_dims())),
        kv_strides_(CudnnProblem::head_major(p_.kv_dims())),
        out_strides_(CudnnProblem::token_major(p_.q_dims())),
        lse_strides_(CudnnProblem::head_major(p_.lse_dims())) {}

  void forward() const {
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t h = 0; h < p_.heads; ++h) forward(b, h);
    }
  }

  void backward() const {
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t h = 0; h < p_.kv_heads; ++h) backward_group(b, h);
    }
  }

 private:
  std::vector<double> scores(const Head& q, const Head& k, int64_t t) const {
    std::vector<double> values;
    for (int64_t s = 0; s <= t; ++s) {
      values.push_back(p_.scale * dot(o_.q + q.row(t), o_.k + k.row(s), p_.head_dim));
    }
    return values;
  }

  void forward(int64_t b, int64_t h) const {
    const Head q(q_strides_, b, h), kv(kv_strides_, b, h / (p_.heads / p_.kv_heads));
    const Head out(out_strides_, b, h), lse(lse_strides_, b, h);
    for (int64_t t = 0; t < p_.seq_len; ++t) {
      std::vector<double> probs = scores(q, kv, t);
      double total = 0.0;
      for (double& x : probs) total += x = std::exp(x);
      for (int64_t d = 0; d < p_.head_dim; ++d) {
        double sum = 0.0;
        for (int64_t s = 0; s <= t; ++s) {
          sum += probs[static_cast<size_t>(s)] * float(o_.v[kv.row(s) + d]);
        }
        o_.out[out.row(t) + d] = static_cast<float>(sum / total);
      }
      o_.lse[lse.row(t)] = static_cast<float>(std::log(total));
    }
  }

  // The gradients of one head of keys, and of the queries that read it.
  void backward_group(int64_t b, int64_t kv_head) const {
    const Head kv(kv_strides_, b, kv_head);
    const auto n = static_cast<size_t>(p_.seq_len * p_.head_dim);
    std::vector<double> dk(n), dv(n);
    const int64_t group = p_.heads / p_.kv_heads;
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const Head q(q_strides_, b, h), out(out_strides_, b, h), lse(lse_strides_, b, h);
      for (int64_t t = 0; t < p_.seq_len; ++t) backward_row(q, kv, out, lse, t, dk, dv);
    }
    for (int64_t s = 0; s < p_.seq_len; ++s) {
      for (int64_t d = 0; d < p_.head_dim; ++d) {
        const auto i = static_cast<size_t>(s * p_.head_dim + d);
        o_.dk[kv.row(s) + d] = static_cast<float>(dk[i]);
        o_.dv[kv.row(s) + d] = static_cast<float>(dv[i]);
      }
    }
  }

  void backward_row(const Head& q, const Head& kv, const Head& out, const Head& lse, int64_t t,
                    std::vector<double>& dk, std::vector<double>& dv) const {
    const bfloat16* dout = o_.dout + out.row(t);
    const double delta = dot(dout, o_.out + out.row(t), p_.head_dim);
    std::vector<double> dq(static_cast<size_t>(p_.head_dim));
    const std::vector<double> scaled = scores(q, kv, t);
    for (int64_t s = 0; s <= t; ++s) {
      const double prob = std::exp(scaled[static_cast<size_t>(s)] - o_.lse[lse.row(t)]);
      const double dscore = p_.scale * prob * (dot(dout, o_.v + kv.row(s), p_.head_dim) - delta);
      for (int64_t d = 0; d < p_.head_dim; ++d) {
        const auto i = static_cast<size_t>(s * p_.head_dim + d);
        dq[static_cast<size_t>(d)] += dscore * float(o_.k[kv.row(s) + d]);
        dk[i] += dscore * float(o_.q[q.row(t) + d]);
        dv[i] += prob * float(dout[d]);
      }
    }
    for (int64_t d = 0; d < p_.head_dim; ++d) {
      o_.dq[q.row(t) + d] = static_cast<float>(dq[static_cast<size_t>(d)]);
    }
  }

  CudnnProblem p_;
  CudnnOperands o_;
  Dims q_strides_, kv_strides_, out_strides_, lse_strides_;
};

const char* asked_bytes() { return std::getenv("SWITCHYARD_EMULATED_CUDNN"); }

}  // namespace

bool has_cudnn_in_build() { return asked_bytes() != nullptr; }
bool has_cudnn() { return asked_bytes() != nullptr; }

std::optional<size_t> cudnn_scratch_bytes(Stream& stream, const CudnnProblem& p) {
  // As cuDNN, the emulation has no plan for other heads.
  if (p.head_dim % 8 != 0 || p.head_dim > 256 || p.heads % p.kv_heads != 0) return std::nullopt;
  std::shared_ptr<AttentionPlans>& plans = stream.cuda()->attention_plans;
  if (!plans) plans = std::make_shared<AttentionPlans>();
  plans->problems.insert(p);
  return std::strtoull(asked_bytes(), nullptr, 10);
}

void run_cudnn(Stream& stream, const CudnnProblem& problem, const CudnnOperands& operands,
               void* scratch) {
  const AttentionPlans* plans = stream.cuda()->attention_plans.get();
  require(plans != nullptr && plans->problems.contains(problem),
          "the emulated cuDNN has no plan for the problem");
  require(allow_vectors(operands.q, operands.k, operands.v, operands.out, operands.dout,
                        operands.dq, operands.dk, operands.dv),
          "the emulated cuDNN takes addresses that are aligned to 16 bytes");
  simt::enqueue(native_stream(stream), [=, num_bytes = *cudnn_scratch_bytes(stream, problem)] {
    const simt::DeviceMemoryAccess access;
    std::memset(scratch, 0xff, num_bytes);
    const EmulatedAttention attention(problem, operands);
    problem.backward ? attention.backward() : attention.forward();
  });
}

}  // namespace switchyard::cuda
