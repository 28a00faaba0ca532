#pragma once

// Attention by cuDNN: which problems it gets, in which pieces, and with how much scratch. The
// shapes are those of kernels/attention/attention.h.

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cudnn_graphs.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::cuda {

// Whether cuDNN may compute this: bf16, heads of up to 256 elements in multiples of 8, no
// documents, more than one position. The backward pass also needs scratch for all scores of a
// sequence, of which cuDNN keeps gradients so that results repeat.
bool fits_cudnn(ConstTensorView q, ConstTensorView document_start, bool backward);

// How many sequences a call of the backward pass takes, so that their scratch stays small.
int64_t cudnn_sequences_per_call(ConstTensorView q);

// Scratch of a call that plans count; upper bounds of what cuDNN asked for in its versions so far.
size_t cudnn_forward_bytes(ConstTensorView q);
size_t cudnn_backward_bytes(ConstTensorView q, ConstTensorView k);

// As the ops. Return false, having written nothing, if cuDNN does not compute it.
bool cudnn_attention_forward(Stream&, Workspace&, ConstTensorView q, ConstTensorView k,
                             ConstTensorView v, float scale, TensorView out, TensorView lse);
bool cudnn_attention_backward(Stream&, Workspace&, ConstTensorView dout, ConstTensorView q,
                              ConstTensorView k, ConstTensorView v, ConstTensorView out,
                              ConstTensorView lse, float scale, TensorView dq, TensorView dk,
                              TensorView dv);

}  // namespace switchyard::cuda
