#pragma once

#include <cstdint>
#include <memory>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "layers/decoding/far_memory.h"

namespace switchyard {

// Keys and values on the device.
struct NearRows {
  Tensor k, v;  // [batch, kv_heads, slots, head_dim]
};

// How many of the chosen keys had been predicted.
struct PredictionFigures {
  int64_t chosen = 0;  // without those of the new tokens, which nothing can predict
  int64_t missed = 0;

  double share() const {
    return chosen > 0 ? 1.0 - static_cast<double>(missed) / static_cast<double>(chosen) : 0.0;
  }
};

// The keys and values of one layer in far memory, and those on the device that a step attends to:
// HATA-off (arXiv 2506.02572, section 5.3; InfiniGen, arXiv 2406.19707). A step calls `begin` with
// predicted positions while the previous layer computes, then `write` with the new token's rows,
// and `bring`, which fetches what the prediction missed: so the step reads the rows that it would
// read in a cache on the device, in the same order.
class OffloadedLayer {
 public:
  // A layer whose steps choose at most `most_chosen` keys per head, for which it has room twice.
  //   shape  [batch, kv_heads, max_len, head_dim]
  OffloadedLayer(FarMemory& far, const Shape& shape, DType dtype, Device device,
                 int64_t most_chosen);
  // A layer whose steps attend to all keys, which are brought to `whole`, of max_len slots. Layers
  // can share it unless they follow one another.
  OffloadedLayer(FarMemory& far, const Shape& shape, DType dtype, Device device,
                 std::shared_ptr<NearRows> whole);

  void write(Stream& stream, ConstTensorView k, ConstTensorView v, int64_t first_position) {
    far_->write(stream, k, v, first_position);
  }

  // Begins to fetch the predicted of the first `length` positions; may be left out.
  //   predicted  [batch, kv_heads, count] i32, rising for each head; empty: all
  void begin(Stream& stream, ConstTensorView predicted, int64_t length);

  // Fetches what is missing of the chosen keys, the newest at `length` - 1. Returns the slots of
  // `near` where they are, for gather_attention; they lie in the workspace.
  //   chosen, result  [batch, kv_heads, count] i32, rising for each head
  TensorView bring(Stream& stream, Workspace& workspace, ConstTensorView chosen, int64_t length);
  // Fetches what is missing of the first `length` positions; position p is in slot p.
  void bring_all(Stream& stream, int64_t length);

  const NearRows& near() const { return *near_; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  // Since the layer was made. Waits for the stream.
  PredictionFigures prediction(Stream& stream);

 private:
  Shape shape_;
  DType dtype_;
  Device device_;
  std::unique_ptr<FarLayer> far_;
  std::shared_ptr<NearRows> near_;
  int64_t most_chosen_ = 0;
  Tensor held_;        // the predicted positions, whose rows are in the first slots
  Tensor missing_;     // positions, of a step
  Tensor figures_;     // [batch, kv_heads, 2] i32, see FindRows
  int64_t begun_ = 0;  // how many positions the request in progress covers; 0: there is none
  int64_t num_held_ = 0;
};

}  // namespace switchyard
