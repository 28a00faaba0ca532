#include <cublas_v2.h>

#include <algorithm>

#include "tests/simt/column_major.h"

using simt::multiply;

struct EmulatedCublas {
  cudaStream_t stream = nullptr;
};

namespace {

bool is_supported(cudaDataType_t ab, cudaDataType_t c) { return ab == c || c == CUDA_R_32F; }

// cuBLAS reads the wrong memory for other arguments, so the emulation refuses them.
bool is_valid(cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k, int lda,
              int ldb, int ldc) {
  return m >= 0 && n >= 0 && k >= 0 && lda >= std::max(1, transa == CUBLAS_OP_N ? m : k) &&
         ldb >= std::max(1, transb == CUBLAS_OP_N ? k : n) && ldc >= std::max(1, m);
}

}  // namespace

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "resource allocation failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "not supported";
    case CUBLAS_STATUS_INVALID_VALUE:
      break;
  }
  return "invalid value";
}

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new EmulatedCublas;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, size_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void* alpha,
                            const void* a, cudaDataType_t a_type, int lda, const void* b,
                            cudaDataType_t b_type, int ldb, const void* beta, void* c,
                            cudaDataType_t c_type, int ldc, cublasComputeType_t, cublasGemmAlgo_t) {
  if (handle == nullptr || !is_valid(transa, transb, m, n, k, lda, ldb, ldc)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (a_type != b_type || !is_supported(a_type, c_type)) return CUBLAS_STATUS_NOT_SUPPORTED;
  simt::enqueue(handle->stream, [=, alpha = *static_cast<const float*>(alpha),
                                 beta = *static_cast<const float*>(beta)] {
    const simt::DeviceMemoryAccess access;
    multiply({a, a_type, lda, transa == CUBLAS_OP_T}, {b, b_type, ldb, transb == CUBLAS_OP_T}, m, n,
             k, alpha, beta, c, c_type, ldc);
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmGroupedBatchedEx(
    cublasHandle_t handle, const cublasOperation_t transa[], const cublasOperation_t transb[],
    const int m[], const int n[], const int k[], const void* alpha, const void* const a[],
    cudaDataType_t a_type, const int lda[], const void* const b[], cudaDataType_t b_type,
    const int ldb[], const void* beta, void* const c[], cudaDataType_t c_type, const int ldc[],
    int group_count, const int group_size[], cublasComputeType_t) {
  if (a_type != b_type || a_type != c_type) return CUBLAS_STATUS_NOT_SUPPORTED;
  int64_t at = 0;
  for (int g = 0; g < group_count; ++g) {
    if (handle == nullptr ||
        !is_valid(transa[g], transb[g], m[g], n[g], k[g], lda[g], ldb[g], ldc[g])) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    // Sizes and factors are in host memory and read now; the arrays of pointers are on the device.
    for (int i = 0; i < group_size[g]; ++i, ++at) {
      simt::enqueue(handle->stream, [=, left_transposed = transa[g] == CUBLAS_OP_T,
                                     right_transposed = transb[g] == CUBLAS_OP_T, m = m[g],
                                     n = n[g], k = k[g], lda = lda[g], ldb = ldb[g], ldc = ldc[g],
                                     alpha = static_cast<const float*>(alpha)[g],
                                     beta = static_cast<const float*>(beta)[g]] {
        const simt::DeviceMemoryAccess access;
        multiply({a[at], a_type, lda, left_transposed}, {b[at], b_type, ldb, right_transposed}, m,
                 n, k, alpha, beta, c[at], c_type, ldc);
      });
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}
