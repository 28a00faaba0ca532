#pragma once

#include <functional>

#include "kernels/runtime/device.h"

namespace switchyard {

namespace cuda {
struct GraphState;  // kernels/cuda/support.h
}

// Work of a stream that was recorded and can be put into a stream again by one call: a CUDA graph.
// A replay uses the addresses and numbers of the recording, so the memory must stay where it is,
// and what is to differ must be in it.
class Graph {
 public:
  // Calls `work`, which puts its work into `stream` as ever; it is recorded instead of run. `work`
  // must not wait for the device, allocate memory of it, or copy from or to ordinary host memory,
  // and must leave other streams alone. Needs a CUDA device.
  Graph(Stream& stream, const std::function<void()>& work);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Puts the recorded work into a stream of the same device.
  void launch(Stream& stream);

 private:
  cuda::GraphState* state_;
};

}  // namespace switchyard
