#include "parallel/staged_communicator.h"

#include "kernels/elementwise.h"

namespace switchyard {
namespace {

bool is_on_host(ConstTensorView view) { return view.device().kind == DeviceKind::cpu; }

}  // namespace

TensorView StagedCommunicator::stage(PinnedBuffer& buffer, ConstTensorView device) {
  if (buffer.num_bytes() < device.num_bytes()) buffer = PinnedBuffer(device.num_bytes());
  return {buffer.data(), device.shape(), device.dtype()};
}

TensorView StagedCommunicator::download(Stream& stream, ConstTensorView in) {
  const TensorView host = stage(in_, in);
  copy(stream, in, host);
  stream.synchronize();
  return host;
}

// Waits: the next call stages into the same memory.
void StagedCommunicator::upload(Stream& stream, ConstTensorView host, TensorView out) {
  copy(stream, host, out);
  stream.synchronize();
}

void StagedCommunicator::barrier(Stream& stream) {
  stream.synchronize();
  host_->barrier(stream);
}

void StagedCommunicator::broadcast(Stream& stream, TensorView data, int root) {
  if (is_on_host(data)) return host_->broadcast(stream, data, root);
  const TensorView host = download(stream, data);
  host_->broadcast(stream, host, root);
  upload(stream, host, data);
}

void StagedCommunicator::all_reduce(Stream& stream, TensorView data, ReduceOp op) {
  if (is_on_host(data)) return host_->all_reduce(stream, data, op);
  const TensorView host = download(stream, data);
  host_->all_reduce(stream, host, op);
  upload(stream, host, data);
}

void StagedCommunicator::all_gather(Stream& stream, ConstTensorView in, TensorView out) {
  if (is_on_host(in)) return host_->all_gather(stream, in, out);
  const TensorView host_out = stage(out_, out);
  host_->all_gather(stream, download(stream, in), host_out);
  upload(stream, host_out, out);
}

void StagedCommunicator::reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) {
  if (is_on_host(in)) return host_->reduce_scatter(stream, in, out);
  const TensorView host_out = stage(out_, out);
  host_->reduce_scatter(stream, download(stream, in), host_out);
  upload(stream, host_out, out);
}

void StagedCommunicator::all_to_all_v(Stream& stream, ConstTensorView in,
                                      std::span<const int64_t> send_rows, TensorView out,
                                      std::span<const int64_t> recv_rows) {
  if (is_on_host(in)) return host_->all_to_all_v(stream, in, send_rows, out, recv_rows);
  const TensorView host_out = stage(out_, out);
  host_->all_to_all_v(stream, download(stream, in), send_rows, host_out, recv_rows);
  upload(stream, host_out, out);
}

}  // namespace switchyard
