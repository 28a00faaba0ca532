#include "kernels/linear/matmul_with_bias.h"

#include <cublasLt.h>

#include <compare>
#include <map>
#include <memory>
#include <type_traits>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/cuda/support.h"
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
  template <auto kDestroy>
  struct Destroy {
    template <class T>
    void operator()(T* handle) const {
      kDestroy(handle);
    }
  };
  template <class Handle, auto kDestroy>
  using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<kDestroy>>;
  using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;

  struct Plan {
    Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> operation;
    Layout a, b, c;  // in the library's order: its a is our b, its b is our a
    cublasLtMatmulAlgo_t algorithm{};
    bool is_supported = false;
  };

  EpiloguePlans() {
    cublasLtHandle_t made = nullptr;
    check_cublas(cublasLtCreate(&made), "cublasLtCreate");
    handle.reset(made);
  }

  Owned<cublasLtHandle_t, cublasLtDestroy> handle;
  std::map<Problem, Plan> plans;
};

}  // namespace cuda

namespace {

using namespace cuda;  // NOLINT: the device helpers

using Problem = EpiloguePlans::Problem;
using Plan = EpiloguePlans::Plan;

cudaDataType_t cuda_type(DType dtype) { return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF; }

// The layout of x as stored, where op(x) is [rows, columns] in our terms.
EpiloguePlans::Layout make_layout(DType dtype, int64_t rows, int64_t columns, Transpose transpose) {
  if (transpose == Transpose::yes) std::swap(rows, columns);
  cublasLtMatrixLayout_t layout = nullptr;
  check_cublas(cublasLtMatrixLayoutCreate(&layout, cuda_type(dtype), static_cast<uint64_t>(columns),
                                          static_cast<uint64_t>(rows), columns),
               "cublasLtMatrixLayoutCreate");
  return EpiloguePlans::Layout(layout);
}

template <class T>
void set(const Plan& plan, cublasLtMatmulDescAttributes_t attribute, T value) {
  check_cublas(
      cublasLtMatmulDescSetAttribute(plan.operation.get(), attribute, &value, sizeof(value)),
      "cublasLtMatmulDescSetAttribute");
}

Plan describe(const Problem& p) {
  Plan plan;
  cublasLtMatmulDesc_t operation = nullptr;
  check_cublas(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate");
  plan.operation.reset(operation);
  const auto as_operation = [](Transpose transpose) {
    return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  set(plan, CUBLASLT_MATMUL_DESC_TRANSA, as_operation(p.transpose_b));
  set(plan, CUBLASLT_MATMUL_DESC_TRANSB, as_operation(p.transpose_a));
  set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  plan.a = make_layout(p.dtype, p.k, p.n, p.transpose_b);
  plan.b = make_layout(p.dtype, p.m, p.k, p.transpose_a);
  plan.c = make_layout(p.dtype, p.m, p.n, Transpose::no);
  return plan;
}

// Asks for the fastest algorithm that sums in f32 to the end, however it splits the inner
// dimension.
void choose_algorithm(cublasLtHandle_t handle, const Problem& problem, size_t workspace_bytes,
                      Plan& plan) {
  cublasLtMatmulPreference_t made = nullptr;
  check_cublas(cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate");
  const EpiloguePlans::Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>
      preference(made);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_cublas(
        cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
        "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes));
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer(attribute, problem.alignment);
  }
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, plan.operation.get(), plan.a.get(), plan.b.get(), plan.c.get(), plan.c.get(),
      preference.get(), 1, &best, &found);
  plan.is_supported = status == CUBLAS_STATUS_SUCCESS && found == 1;
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) {
    check_cublas(status, "cublasLtMatmulAlgoGetHeuristic");
  }
  plan.algorithm = best.algo;
}

Plan& plan_for(Stream& stream, const Problem& problem) {
  StreamState& state = *stream.cuda();
  if (!state.epilogue_plans) state.epilogue_plans = std::make_shared<EpiloguePlans>();
  EpiloguePlans& known = *state.epilogue_plans;
  const auto [at, is_new] = known.plans.try_emplace(problem);
  if (is_new) {
    at->second = describe(problem);
    choose_algorithm(known.handle.get(), problem, state.cublas_workspace.num_bytes(), at->second);
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
  const Plan& plan = plan_for(stream, problem);
  if (!plan.is_supported) return false;
  const ConstTensorView addend = bias_for(stream, bias, c.dtype());
  if (!addend) return false;
  set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, addend.raw());
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
