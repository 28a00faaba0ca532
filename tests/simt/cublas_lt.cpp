#include <cublasLt.h>

#include <algorithm>
#include <cstring>

#include "tests/simt/column_major.h"

struct EmulatedLt {};
struct EmulatedLtOperation {
  int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  int32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
};
struct EmulatedLtLayout {
  cudaDataType_t type;
  int64_t rows, columns, stride;
};
struct EmulatedLtPreference {
  uint32_t least_alignment = 256;
};

namespace {

constexpr uint64_t kTheAlgorithm = 0x5eed;

bool fits(const EmulatedLtOperation& op, const EmulatedLtLayout& a, const EmulatedLtLayout& b,
          const EmulatedLtLayout& d) {
  const auto extents = [](const EmulatedLtLayout& x, int32_t transpose) {
    return transpose == CUBLAS_OP_T ? std::pair(x.columns, x.rows) : std::pair(x.rows, x.columns);
  };
  const auto [m, k] = extents(a, op.transpose_a);
  const auto [inner, n] = extents(b, op.transpose_b);
  return inner == k && d.rows == m && d.columns == n && a.stride >= a.rows && b.stride >= b.rows &&
         d.stride >= d.rows && a.type == b.type && a.type == d.type;
}

template <class T>
cublasStatus_t make(T** made, T value) {
  *made = new T(value);
  return CUBLAS_STATUS_SUCCESS;
}

template <class T>
cublasStatus_t destroy(T* object) {
  delete object;
  return CUBLAS_STATUS_SUCCESS;
}

template <class T>
cublasStatus_t assign(T& to, const void* value, size_t num_bytes) {
  if (num_bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return make(handle, EmulatedLt{}); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return destroy(handle); }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation, cublasComputeType_t,
                                        cudaDataType_t) {
  return make(operation, EmulatedLtOperation{});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  return destroy(operation);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  return make(layout, EmulatedLtLayout{type, static_cast<int64_t>(rows),
                                       static_cast<int64_t>(columns), stride});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return destroy(layout);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return make(preference, EmulatedLtPreference{});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return destroy(preference);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t num_bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return assign(operation->transpose_a, value, num_bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return assign(operation->transpose_b, value, num_bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return assign(operation->epilogue, value, num_bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return assign(operation->bias, value, num_bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t num_bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return num_bytes == sizeof(uint64_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return num_bytes == sizeof(uint32_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    default:
      break;
  }
  uint32_t alignment = 0;
  const cublasStatus_t status = assign(alignment, value, num_bytes);
  preference->least_alignment = std::min(preference->least_alignment, alignment);
  return status;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
                                              cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  *found = 0;
  if (handle == nullptr || requested < 1 || c->type != d->type || !fits(*operation, *a, *b, *d)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (preference->least_alignment < 4) return CUBLAS_STATUS_NOT_SUPPORTED;
  *results = {.algo = {{kTheAlgorithm}}, .workspaceSize = 0, .state = CUBLAS_STATUS_SUCCESS};
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void*, cublasLtMatrixLayout_t, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void*, size_t,
                              cudaStream_t stream) {
  if (handle == nullptr || algorithm->data[0] != kTheAlgorithm ||
      !fits(*operation, *a_layout, *b_layout, *d_layout) ||
      (operation->epilogue == CUBLASLT_EPILOGUE_BIAS && operation->bias == nullptr)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  // Descriptors are in host memory and are read now.
  simt::enqueue(stream, [=, op = *operation, left = *a_layout, right = *b_layout, out = *d_layout,
                         alpha = *static_cast<const float*>(alpha),
                         beta = *static_cast<const float*>(beta)] {
    const simt::DeviceMemoryAccess access;
    const bool a_transposed = op.transpose_a == CUBLAS_OP_T;
    simt::multiply({a, left.type, left.stride, a_transposed},
                   {b, right.type, right.stride, op.transpose_b == CUBLAS_OP_T}, out.rows,
                   out.columns, a_transposed ? left.rows : left.columns, alpha, beta, d, out.type,
                   out.stride, op.epilogue == CUBLASLT_EPILOGUE_BIAS ? op.bias : nullptr);
  });
  return CUBLAS_STATUS_SUCCESS;
}
