#include "layers/decoding/offloaded_layer.h"

#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/decode/fetch_rows.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {
namespace {

// The begin of a tensor with room for more columns.
TensorView columns(Tensor& room, int64_t count) {
  return {room.view().raw(),
          {room.shape()[0], room.shape()[1], count},
          room.dtype(),
          room.view().device()};
}

}  // namespace

OffloadedLayer::OffloadedLayer(FarMemory& far, const Shape& shape, DType dtype, Device device,
                               int64_t most_chosen)
    : shape_(shape),
      dtype_(dtype),
      device_(device),
      far_(far.add_layer(shape, dtype)),
      near_(std::make_shared<NearRows>()),
      most_chosen_(most_chosen),
      held_({shape[0], shape[1], most_chosen}, DType::i32, device),
      missing_(held_.shape(), DType::i32, device),
      figures_({shape[0], shape[1], 2}, DType::i32, device) {
  const Shape slots{shape[0], shape[1], 2 * most_chosen, shape[3]};
  near_->k = Tensor(slots, dtype, device, "the fetched keys of a layer");
  near_->v = Tensor(slots, dtype, device, "the fetched values of a layer");
}

OffloadedLayer::OffloadedLayer(FarMemory& far, const Shape& shape, DType dtype, Device device,
                               std::shared_ptr<NearRows> whole)
    : shape_(shape),
      dtype_(dtype),
      device_(device),
      far_(far.add_layer(shape, dtype)),
      near_(std::move(whole)) {}

void OffloadedLayer::begin(Stream& stream, ConstTensorView predicted, int64_t length) {
  RowRequest request{.positions = {}, .length = length, .k = near_->k, .v = near_->v};
  if (predicted) {
    num_held_ = predicted.dim(2);
    const TensorView held = columns(held_, num_held_);
    copy(stream, predicted, held);
    request.positions = held;
  }
  far_->begin(stream, request);
  begun_ = length;
}

TensorView OffloadedLayer::bring(Stream& stream, Workspace& workspace, ConstTensorView chosen,
                                 int64_t length) {
  const bool was_begun = std::exchange(begun_, 0) > 0;
  if (was_begun) far_->wait(stream);
  const TensorView slots = workspace.take(chosen.shape(), DType::i32);
  const TensorView missing = columns(missing_, chosen.dim(2));
  find_rows(stream, was_begun ? columns(held_, num_held_) : TensorView(), chosen, most_chosen_,
            /*known=*/length - 1, slots, missing, figures_);
  far_->begin(stream, {.positions = missing,
                       .first_slot = most_chosen_,
                       .length = length,
                       .is_urgent = true,
                       .k = near_->k,
                       .v = near_->v});
  far_->wait(stream);
  return slots;
}

void OffloadedLayer::bring_all(Stream& stream, int64_t length) {
  const int64_t begun = std::exchange(begun_, 0);
  if (begun > 0) far_->wait(stream);
  far_->begin(stream, {.positions = {},
                       .first_position = begun,
                       .length = length,
                       .is_urgent = true,
                       .k = near_->k,
                       .v = near_->v});
  far_->wait(stream);
}

PredictionFigures OffloadedLayer::prediction(Stream& stream) {
  PredictionFigures sums;
  if (!figures_) return sums;
  HostMirror host(figures_);
  host.download(stream);
  const int32_t* of_heads = host.host().data<int32_t>();
  for (int64_t i = 0; i < figures_.num_elements(); i += 2) {
    sums.chosen += of_heads[i];
    sums.missed += of_heads[i + 1];
  }
  return sums;
}

}  // namespace switchyard
