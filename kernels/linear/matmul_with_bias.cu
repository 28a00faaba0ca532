#include "kernels/linear/matmul_with_bias.h"

#include <compare>
#include <map>
#include <memory>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace cuda {

// The algorithms that cuBLASLt chose for problems, and its descriptions of them. Its matrices are
// column-major: each is the transpose of ours, c^T = op(b)^T op(a)^T, and the bias is a column.
struct EpiloguePlans {
  struct Problem {
    int64_t m, n, k;
    Transpose transpose_a, transpose_b;
    DType dtype;
    uint32_t alignment;  // of all addresses, in bytes
    auto operator<=>(const Problem&) const = default;
  };

  LtHandle handle = make_lt_handle();
  std::map<Problem, LtPlan> plans;
};

}  // namespace cuda

namespace {

using namespace cuda;  // NOLINT: the device helpers

using Problem = EpiloguePlans::Problem;

// The layout of x as stored, where op(x) is [rows, columns] in our terms.
LtLayout make_layout(DType dtype, int64_t rows, int64_t columns, Transpose transpose) {
  if (transpose == Transpose::yes) std::swap(rows, columns);
  cublasLtMatrixLayout_t layout = nullptr;
  check_cublas(cublasLtMatrixLayoutCreate(&layout, cuda_type(dtype), static_cast<uint64_t>(columns),
                                          static_cast<uint64_t>(rows), columns),
               "cublasLtMatrixLayoutCreate");
  return LtLayout(layout);
}

LtPlan describe(const Problem& p) {
  LtPlan plan{.operation = make_lt_operation(p.transpose_a, p.transpose_b),
              .a = make_layout(p.dtype, p.k, p.n, p.transpose_b),
              .b = make_layout(p.dtype, p.m, p.k, p.transpose_a),
              .c = make_layout(p.dtype, p.m, p.n, Transpose::no)};
  set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  return plan;
}

LtPlan& plan_for(Stream& stream, const Problem& problem) {
  StreamState& state = *stream.cuda();
  if (!state.epilogue_plans) state.epilogue_plans = std::make_shared<EpiloguePlans>();
  EpiloguePlans& known = *state.epilogue_plans;
  const auto [at, is_new] = known.plans.try_emplace(problem);
  if (is_new) {
    at->second = describe(problem);
    at->second.choose_algorithm(
        known.handle, make_lt_preference(state.cublas_workspace.num_bytes(), problem.alignment));
  }
  return at->second;
}

// The greatest power of two, at most 16, that divides all addresses.
template <class... Pointers>
uint32_t common_alignment(const Pointers*... addresses) {
  const uintptr_t bits = (uintptr_t{16} | ... | reinterpret_cast<uintptr_t>(addresses));
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// The bias in the dtype of the product, as the library needs it; empty if the bias is too long.
ConstTensorView bias_for(Stream& stream, ConstTensorView bias, DType dtype) {
  if (dtype == DType::f32) return bias;
  const size_t num_bytes = static_cast<size_t>(bias.num_elements()) * size_of(dtype);
  if (num_bytes > kReductionScratchBytes) return {};
  const TensorView rounded(reduction_scratch(stream, num_bytes), bias.shape(), dtype,
                           stream.device());
  cuda::cast(stream, bias, rounded);
  return rounded;
}

bool multiply_with_epilogue(Stream& stream, const Problem& problem, ConstTensorView a,
                            ConstTensorView b, ConstTensorView bias, TensorView c) {
  cublas_handle(stream);  // makes the workspace that both libraries use
  const LtPlan& plan = plan_for(stream, problem);
  if (!plan.is_supported) return false;
  const ConstTensorView addend = bias_for(stream, bias, c.dtype());
  if (!addend) return false;
  set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, addend.raw());
  const StreamState& state = *stream.cuda();
  const float alpha = 1.0f, beta = 0.0f;
  check_cublas(
      cublasLtMatmul(state.epilogue_plans->handle.get(), plan.operation.get(), &alpha, b.raw(),
                     plan.a.get(), a.raw(), plan.b.get(), &beta, c.raw(), plan.c.get(), c.raw(),
                     plan.c.get(), &plan.algorithm, state.cublas_workspace.data(),
                     state.cublas_workspace.num_bytes(), native_stream(stream)),
      "cublasLtMatmul");
  return true;
}

}  // namespace

void cuda::matmul_with_bias(Stream& stream, ConstTensorView a, Transpose transpose_a,
                            ConstTensorView b, Transpose transpose_b, ConstTensorView bias,
                            TensorView c) {
  const int64_t k = a.dim(transpose_a == Transpose::yes ? 0 : 1);
  if (c.num_elements() == 0) return;
  const Problem problem{.m = c.dim(0),
                        .n = c.dim(1),
                        .k = k,
                        .transpose_a = transpose_a,
                        .transpose_b = transpose_b,
                        .dtype = c.dtype(),
                        .alignment = common_alignment(a.raw(), b.raw(), bias.raw(), c.raw())};
  if (k > 0 && multiply_with_epilogue(stream, problem, a, b, bias, c)) return;
  cuda::matmul(stream, a, transpose_a, b, transpose_b, Accumulate::no, c);
  cuda::add_bias(stream, bias, c);
}

}  // namespace switchyard
