#include "kernels/decode/gather_attention.h"

#include "kernels/decode/attend_cached.h"

namespace switchyard {

void cuda::gather_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                            ConstTensorView k_cache, ConstTensorView v_cache,
                            ConstTensorView indices, ConstTensorView counts,
                            ConstTensorView log_weights, float scale, TensorView out) {
  attend_cached(stream, workspace, q, k_cache, v_cache, indices, counts, log_weights, scale, out);
}

}  // namespace switchyard
