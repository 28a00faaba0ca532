#pragma once

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Looks up rows of a vocabulary-parallel table: this rank holds rows
// [first_row, first_row + rows) of the whole table. Ids of other ranks give rows of zeros.
//   ids    [tokens] i32
//   table  [rows, hidden]
//   out    [tokens, hidden]  dtype of table
using EmbeddingForward = void(Stream&, ConstTensorView ids, ConstTensorView table,
                              int64_t first_row, TensorView out);

//   dout    [tokens, hidden]
//   dtable  [rows, hidden] f32  +=, in the order of the tokens
using EmbeddingBackward = void(Stream&, Workspace&, ConstTensorView ids, ConstTensorView dout,
                               int64_t first_row, TensorView dtable);

EmbeddingForward embedding_forward;
EmbeddingBackward embedding_backward;

namespace cpu {
EmbeddingForward embedding_forward;
EmbeddingBackward embedding_backward;
}  // namespace cpu
namespace cuda {
EmbeddingForward embedding_forward;
EmbeddingBackward embedding_backward;
}  // namespace cuda

}  // namespace switchyard
