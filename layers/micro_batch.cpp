#include "layers/micro_batch.h"

#include <cstddef>
#include <cstring>
#include <iterator>
#include <utility>

#include "kernels/basic/elementwise.h"

namespace switchyard {
namespace {

constexpr Tensor MicroBatch::*kTensors[] = {&MicroBatch::tokens, &MicroBatch::targets,
                                            &MicroBatch::document_start};

}  // namespace

size_t pinned_bytes(int64_t num_sequences, int64_t seq_len) {
  return std::size(kTensors) * static_cast<size_t>(num_sequences * seq_len) * sizeof(int32_t);
}

void pin(MicroBatch& batch, std::shared_ptr<PinnedBuffer> memory) {
  auto* to = static_cast<std::byte*>(memory->data());
  for (const auto member : kTensors) {
    const ConstTensorView from = (batch.*member).view();
    if (!from) continue;
    std::memcpy(to, from.raw(), from.num_bytes());
    to += from.num_bytes();
  }
  batch.pinned = std::move(memory);
}

void copy_to_device(Stream& stream, const MicroBatch& batch, MicroBatch& copied) {
  copied.num_sequences = batch.num_sequences;
  copied.seq_len = batch.seq_len;
  const auto* pinned = batch.pinned ? static_cast<const std::byte*>(batch.pinned->data()) : nullptr;
  for (const auto member : kTensors) {
    const Tensor& from = batch.*member;
    Tensor& to = copied.*member;
    if (!from) {
      to = Tensor();
      continue;
    }
    if (to.shape() != from.shape()) to = Tensor(from.shape(), from.dtype(), stream.device());
    const void* values = pinned ? pinned : from.view().raw();
    copy(stream, ConstTensorView(values, from.shape(), from.dtype()), to);
    if (pinned) pinned += from.view().num_bytes();
  }
}

}  // namespace switchyard
