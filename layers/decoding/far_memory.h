#pragma once

#include <cstdint>
#include <memory>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Rows of a layer that are to be copied to near memory, which is on the device.
struct RowRequest {
  // [batch, kv_heads, count] i32, rising for each head; those outside [0, length) are left out.
  // The i-th goes to slot first_slot + i.
  ConstTensorView positions;
  int64_t first_slot = 0;
  // Without `positions`: all from this one on, to slots of their own numbers.
  int64_t first_position = 0;
  int64_t length = 0;
  bool is_urgent = false;  // the step waits for it at once
  TensorView k, v;         // [batch, kv_heads, slots, head_dim]
};

// The keys and values of one layer where there is more room, but access is slow ("far").
class FarLayer {
 public:
  virtual ~FarLayer() = default;

  // Takes new rows at positions [first_position, first_position + seq_len), which follow the last
  // ones that were written.
  //   k, v  [batch, kv_heads, seq_len, head_dim]
  virtual void write(Stream& stream, ConstTensorView k, ConstTensorView v,
                     int64_t first_position) = 0;

  // Begins to copy rows, after all earlier work of the stream and beside its later work. What the
  // request points to must live until `wait`. A layer has one request at a time.
  virtual void begin(Stream& stream, const RowRequest& request) = 0;
  // Later work of the stream begins when the rows are in near memory. Throws if reading failed.
  virtual void wait(Stream& stream) = 0;
};

// Makes the layers of caches.
class FarMemory {
 public:
  virtual ~FarMemory() = default;

  //   shape  [batch, kv_heads, max_len, head_dim]
  // The layer must not outlive this object.
  virtual std::unique_ptr<FarLayer> add_layer(const Shape& shape, DType dtype) = 0;
};

// Host memory beside a CUDA device: pinned, and copied on a stream of its own. On the CPU it is
// memory like any other, and rows have been copied when `begin` returns.
std::unique_ptr<FarMemory> make_host_memory(Device device);

}  // namespace switchyard
