#include "layers/micro_batch.h"

#include "kernels/basic/elementwise.h"

namespace switchyard {
namespace {

void copy_tensor(Stream& stream, const Tensor& from, Tensor& to) {
  if (!from) {
    to = Tensor();
    return;
  }
  if (to.shape() != from.shape()) to = Tensor(from.shape(), from.dtype(), stream.device());
  copy(stream, from, to);
}

}  // namespace

void copy_to_device(Stream& stream, const MicroBatch& batch, MicroBatch& copied) {
  copied.num_sequences = batch.num_sequences;
  copied.seq_len = batch.seq_len;
  copy_tensor(stream, batch.tokens, copied.tokens);
  copy_tensor(stream, batch.targets, copied.targets);
  copy_tensor(stream, batch.document_start, copied.document_start);
}

}  // namespace switchyard
