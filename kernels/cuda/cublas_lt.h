#pragma once

// For the bodies that call cuBLASLt: owners of its objects.

#include <cublasLt.h>

#include <cstdint>
#include <memory>
#include <type_traits>

#include "kernels/cuda/support.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cuda {

template <auto kDestroy>
struct DestroyLt {
  template <class T>
  void operator()(T* handle) const {
    kDestroy(handle);
  }
};
template <class Handle, auto kDestroy>
using OwnedLt = std::unique_ptr<std::remove_pointer_t<Handle>, DestroyLt<kDestroy>>;

using LtHandle = OwnedLt<cublasLtHandle_t, cublasLtDestroy>;
using LtOperation = OwnedLt<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using LtLayout = OwnedLt<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using LtPreference = OwnedLt<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

inline LtHandle make_lt_handle() {
  cublasLtHandle_t made = nullptr;
  check_cublas(cublasLtCreate(&made), "cublasLtCreate");
  return LtHandle(made);
}

inline cudaDataType_t cuda_type(DType dtype) {
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}
inline cublasOperation_t operation(Transpose transpose) {
  return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

template <class T>
void set(const LtOperation& described, cublasLtMatmulDescAttributes_t attribute, T value) {
  check_cublas(cublasLtMatmulDescSetAttribute(described.get(), attribute, &value, sizeof(value)),
               "cublasLtMatmulDescSetAttribute");
}
template <class T>
void set(const LtPreference& preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  check_cublas(
      cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
      "cublasLtMatmulPreferenceSetAttribute");
}

// A product with sums in f32; the transposes are those of our matrices, and the library's a is our
// b.
inline LtOperation make_lt_operation(Transpose transpose_a, Transpose transpose_b) {
  cublasLtMatmulDesc_t made = nullptr;
  check_cublas(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate");
  LtOperation described(made);
  set(described, CUBLASLT_MATMUL_DESC_TRANSA, operation(transpose_b));
  set(described, CUBLASLT_MATMUL_DESC_TRANSB, operation(transpose_a));
  return described;
}

// For the fastest algorithm that sums in f32 to the end, however it splits the inner dimension.
//   alignment  of all addresses, in bytes
inline LtPreference make_lt_preference(size_t workspace_bytes, uint32_t alignment) {
  cublasLtMatmulPreference_t made = nullptr;
  check_cublas(cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate");
  LtPreference preference(made);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes));
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(preference, attribute, alignment);
  }
  return preference;
}

// What the library needs to run one kind of product again; its matrices are in its order.
struct LtPlan {
  LtOperation operation;
  LtLayout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
  bool is_supported = false;

  // Asks the library for an algorithm.
  void choose_algorithm(const LtHandle& handle, const LtPreference& preference) {
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle.get(), operation.get(), a.get(), b.get(), c.get(),
                                       c.get(), preference.get(), 1, &best, &found);
    is_supported = status == CUBLAS_STATUS_SUCCESS && found == 1;
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) {
      check_cublas(status, "cublasLtMatmulAlgoGetHeuristic");
    }
    algorithm = best.algo;
  }
};

}  // namespace switchyard::cuda
