#include "trainer/training/session.h"

#include "kernels/runtime/check.h"

namespace switchyard {

Device choose_device(MpiRuntime& mpi, const std::string& name) {
  Device device = parse_device(name);
  run_collectively(mpi.world(), [&] {
    check_device(device);
    if (name != "cuda") return;
    const int available = num_devices(DeviceKind::cuda);
    require(
        mpi.local_size() <= available,
        "{} ranks run on this machine, which has {} CUDA device{}: start as many ranks as there "
        "are, or let them share one with run.device=cuda:0",
        mpi.local_size(), available, available == 1 ? "" : "s");
    device.index = mpi.local_rank();
  });
  make_current(device);
  return device;
}

TransformerOptions model_options(const RunConfig& config, const DistributedContext& dist,
                                 Device device) {
  TransformerOptions options = transformer_options(config, dist.transfers_behind_compute());
  if (dist.transfers_behind_compute() && device.is_host()) {
    options.bucket_elements = ParameterStore::kBucketElementsOverMpi;
  }
  return options;
}

}  // namespace switchyard
