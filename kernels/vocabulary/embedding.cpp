#include "kernels/vocabulary/embedding.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void embedding_forward(Stream& stream, ConstTensorView ids, ConstTensorView table,
                       int64_t first_row, TensorView out) {
  require(table.rank() == 2, "table has shape {}, expected [rows, hidden]", table.shape());
  require_dtype(ids, DType::i32, "ids");
  require_shape(out, {ids.num_elements(), table.dim(1)}, "out");
  require_dtype(out, table.dtype(), "out");
  SWITCHYARD_BODY(stream, embedding_forward)(stream, ids, table, first_row, out);
}

void embedding_backward(Stream& stream, Workspace& workspace, ConstTensorView ids,
                        ConstTensorView dout, int64_t first_row, TensorView dtable) {
  require(dtable.rank() == 2, "dtable has shape {}, expected [rows, hidden]", dtable.shape());
  require_dtype(ids, DType::i32, "ids");
  require_dtype(dtable, DType::f32, "dtable");
  require_shape(dout, {ids.num_elements(), dtable.dim(1)}, "dout");
  count_scratch(stream, workspace, no_scratch, [&] {
    cuda::count_embedding_backward(workspace, ids.num_elements(), dtable.dim(0));
  });
  SWITCHYARD_BODY(stream, embedding_backward)(stream, workspace, ids, dout, first_row, dtable);
}

namespace cpu {

void embedding_forward(Stream&, ConstTensorView ids, ConstTensorView table, int64_t first_row,
                       TensorView out) {
  const int64_t tokens = ids.num_elements(), rows = table.dim(0);
  const size_t row_bytes = static_cast<size_t>(table.dim(1)) * size_of(table.dtype());
  const auto* from = static_cast<const char*>(table.raw());
  auto* to = static_cast<char*>(out.raw());
  const int32_t* id = ids.data<int32_t>();
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t row = id[t] - first_row;
    char* target = to + static_cast<size_t>(t) * row_bytes;
    if (row >= 0 && row < rows) {
      std::memcpy(target, from + static_cast<size_t>(row) * row_bytes, row_bytes);
    } else {
      std::memset(target, 0, row_bytes);
    }
  }
}

// Each task handles some columns, so that every row of the table is summed in the tokens' order.
void embedding_backward(Stream&, Workspace&, ConstTensorView ids, ConstTensorView dout,
                        int64_t first_row, TensorView dtable) {
  constexpr int64_t kColumns = 128;
  dispatch_compute_dtype(dout.dtype(), [&]<class T>() {
    const int64_t tokens = ids.num_elements(), rows = dtable.dim(0), hidden = dtable.dim(1);
    const int32_t* id = ids.data<int32_t>();
    const T* d = dout.data<T>();
    float* sums = dtable.data<float>();
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < hidden; begin += kColumns) {
      const int64_t end = std::min(hidden, begin + kColumns);
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t row = id[t] - first_row;
        if (row < 0 || row >= rows) continue;
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
          sums[row * hidden + i] += static_cast<float>(d[t * hidden + i]);
        }
      }
    }
  });
}

}  // namespace cpu
}  // namespace switchyard
