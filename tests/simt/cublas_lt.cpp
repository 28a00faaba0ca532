#include <cublasLt.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/runtime/check.h"
#include "tests/simt/column_major.h"

struct EmulatedLt {};
struct EmulatedLtOperation {
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  int32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
};
struct EmulatedLtLayout {
  cudaDataType_t type;
  int64_t rows, columns, stride;
  int groups = 0;  // 0: not grouped
  const int32_t *rows_of = nullptr, *columns_of = nullptr, *stride_of = nullptr;

  // The layout of one group; reads device memory.
  EmulatedLtLayout group(int i) const { return {type, rows_of[i], columns_of[i], stride_of[i]}; }
};
struct EmulatedLtPreference {
  uint32_t averages = 0;  // how many are set
  uint32_t least_alignment = 256;
};

namespace {

constexpr uint64_t kTheAlgorithm = 0x5eed;
int64_t grouped_calls = 0;

bool is_supported(cudaDataType_t ab, const EmulatedLtLayout& d) {
  return ab == d.type || (d.groups > 0 && d.type == CUDA_R_32F);
}

bool fits(const EmulatedLtOperation& op, const EmulatedLtLayout& a, const EmulatedLtLayout& b,
          const EmulatedLtLayout& d) {
  const auto extents = [](const EmulatedLtLayout& x, int32_t transpose) {
    return transpose == CUBLAS_OP_T ? std::pair(x.columns, x.rows) : std::pair(x.rows, x.columns);
  };
  const auto [m, k] = extents(a, op.transpose_a);
  const auto [inner, n] = extents(b, op.transpose_b);
  return inner == k && d.rows == m && d.columns == n && a.stride >= a.rows && b.stride >= b.rows &&
         d.stride >= d.rows && a.type == b.type;
}

// Grouped layouts show their sizes only on the device.
bool fits_on_host(const EmulatedLtOperation& op, const EmulatedLtLayout& a,
                  const EmulatedLtLayout& b, const EmulatedLtLayout& d) {
  if (!is_supported(a.type, d) || a.groups != b.groups || a.groups != d.groups) return false;
  if (a.groups == 0) return op.pointer_mode == CUBLASLT_POINTER_MODE_HOST && fits(op, a, b, d);
  return op.pointer_mode == CUBLASLT_POINTER_MODE_DEVICE && a.type == b.type &&
         a.type == CUDA_R_16BF && op.epilogue == CUBLASLT_EPILOGUE_DEFAULT;
}

// One product of matrices in device memory.
void multiply(const EmulatedLtOperation& op, const void* a, const EmulatedLtLayout& left,
              const void* b, const EmulatedLtLayout& right, void* d, const EmulatedLtLayout& out,
              float alpha, float beta) {
  const bool a_transposed = op.transpose_a == CUBLAS_OP_T;
  simt::multiply({a, left.type, left.stride, a_transposed},
                 {b, right.type, right.stride, op.transpose_b == CUBLAS_OP_T}, out.rows,
                 out.columns, a_transposed ? left.rows : left.columns, alpha, beta, d, out.type,
                 out.stride, op.epilogue == CUBLASLT_EPILOGUE_BIAS ? op.bias : nullptr);
}

bool is_aligned(const void* address, const EmulatedLtLayout& x) {
  const int64_t element = x.type == CUDA_R_32F ? 4 : 2;
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && x.stride * element % 16 == 0;
}

void multiply_groups(const EmulatedLtOperation& op, const void* a, const EmulatedLtLayout& left,
                     const void* b, const EmulatedLtLayout& right, void* d,
                     const EmulatedLtLayout& out, const void* alpha, const void* beta) {
  for (int i = 0; i < out.groups; ++i) {
    const EmulatedLtLayout of_a = left.group(i), of_b = right.group(i), of_d = out.group(i);
    const void* a_at = static_cast<const void* const*>(a)[i];
    const void* b_at = static_cast<const void* const*>(b)[i];
    void* d_at = static_cast<void* const*>(d)[i];
    const bool is_empty = std::min({of_a.rows, of_a.columns, of_d.rows, of_d.columns}) == 0;
    switchyard::require(!is_empty && fits(op, of_a, of_b, of_d) && is_aligned(a_at, of_a) &&
                            is_aligned(b_at, of_b) && is_aligned(d_at, of_d),
                        "group {} of a product by the emulated cuBLASLt is wrong", i);
    multiply(op, a_at, of_a, b_at, of_b, d_at, of_d, *static_cast<const float*>(alpha),
             *static_cast<const float*>(beta));
  }
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

int64_t emulated_grouped_calls() { return grouped_calls; }

size_t cublasLtGetVersion() {
  const char* text = std::getenv("SWITCHYARD_EMULATED_CUBLAS_VERSION");
  return text ? std::strtoull(text, nullptr, 10) : 131000;
}

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
cublasStatus_t cublasLtGroupedMatrixLayoutCreate(cublasLtMatrixLayout_t* layout,
                                                 cudaDataType_t type, int groups, const void* rows,
                                                 const void* columns, const void* strides) {
  if (groups < 1) return CUBLAS_STATUS_INVALID_VALUE;
  const auto list = [](const void* values) { return static_cast<const int32_t*>(values); };
  return make(layout,
              EmulatedLtLayout{type, 0, 0, 0, groups, list(rows), list(columns), list(strides)});
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t, const void* value,
                                                size_t num_bytes) {
  int32_t width = 0;
  const cublasStatus_t status = assign(width, value, num_bytes);
  return layout->groups > 0 && width == CUBLASLT_INTEGER_WIDTH_32 ? status
                                                                  : CUBLAS_STATUS_INVALID_VALUE;
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
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return assign(operation->pointer_mode, value, num_bytes);
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
    case CUBLASLT_MATMUL_PREF_GROUPED_AVERAGE_REDUCTION_DIM:
    case CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_ROWS:
    case CUBLASLT_MATMUL_PREF_GROUPED_DESC_D_AVERAGE_COLS:
      ++preference->averages;
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
  if (handle == nullptr || requested < 1 || c->type != d->type ||
      !fits_on_host(*operation, *a, *b, *d)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const uint32_t least = d->groups > 0 ? 16 : 4;
  if (preference->least_alignment < least) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d->groups > 0 && preference->averages != 3) return CUBLAS_STATUS_INVALID_VALUE;
  *results = {.algo = {{kTheAlgorithm}}, .workspaceSize = 0, .state = CUBLAS_STATUS_SUCCESS};
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t, void* d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void*, size_t,
                              cudaStream_t stream) {
  if (handle == nullptr || algorithm->data[0] != kTheAlgorithm ||
      !fits_on_host(*operation, *a_layout, *b_layout, *d_layout) ||
      (operation->epilogue == CUBLASLT_EPILOGUE_BIAS && operation->bias == nullptr)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  // Descriptors are in host memory and are read now.
  const EmulatedLtOperation op = *operation;
  const EmulatedLtLayout left = *a_layout, right = *b_layout, out = *d_layout;
  if (out.groups > 0) {
    if (c != d) return CUBLAS_STATUS_INVALID_VALUE;
    ++grouped_calls;
    simt::enqueue(stream, [=] {
      const simt::DeviceMemoryAccess access;
      multiply_groups(op, a, left, b, right, d, out, alpha, beta);
    });
    return CUBLAS_STATUS_SUCCESS;
  }
  simt::enqueue(stream, [=, alpha = *static_cast<const float*>(alpha),
                         beta = *static_cast<const float*>(beta)] {
    const simt::DeviceMemoryAccess access;
    multiply(op, a, left, b, right, d, out, alpha, beta);
  });
  return CUBLAS_STATUS_SUCCESS;
}
