#include "kernels/runtime/graph.h"

#include "kernels/cuda/backend.h"
#include "kernels/runtime/check.h"

namespace switchyard {

Graph::Graph(Stream& stream, const std::function<void()>& work) {
  require(stream.device().runs_cuda(), "work of {} cannot be recorded", to_string(stream.device()));
  cuda::begin_recording(*stream.cuda());
  try {
    work();
  } catch (...) {
    cuda::abandon_recording(*stream.cuda());
    throw;
  }
  state_ = cuda::end_recording(*stream.cuda());
}

Graph::~Graph() { cuda::destroy(state_); }

void Graph::launch(Stream& stream) { cuda::launch(*state_, *stream.cuda()); }

}  // namespace switchyard
