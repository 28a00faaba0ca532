#include "trainer/training/session.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <span>

#include "kernels/runtime/check.h"

namespace switchyard {

Device choose_device(MpiRuntime& mpi, const std::string& name) {
  Device device = parse_device(name);
  run_collectively(mpi.world(), [&] { check_device(device); });
  // A scheduler may show each rank another device, which is then the rank's first one.
  if (name == "cuda" && !have_devices_of_their_own(mpi, device)) {
    run_collectively(mpi.world(), [&] {
      const int available = num_devices(DeviceKind::cuda);
      require(
          mpi.local_size() <= available,
          "{} ranks run on this machine, which has {} CUDA device{}: start as many ranks as there "
          "are, or let them share one with run.device=cuda:0",
          mpi.local_size(), available, available == 1 ? "" : "s");
    });
    device.index = mpi.local_rank();
  }
  make_current(device);
  return device;
}

Device start_watchdog(MpiRuntime& mpi, const RunConfig& config, Device device) {
  if (mpi.world_size() > 1) {
    mpi.watchdog().start(std::chrono::seconds(config.run.collective_timeout), device);
  }
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

std::optional<Bf16Method> Session::bf16_method() const {
  return multiplies_bf16_on_cpu_ ? std::optional(switchyard::bf16_method()) : std::nullopt;
}

std::string Session::describe_bf16_method() const {
  if (!multiplies_bf16_on_cpu_) return "";
  if (std::isinf(bf16_seconds_.native)) {
    return "bf16 products are widened: not every processor has native ones";
  }
  return fmt::format("bf16 products are {}; native ones take {:.2f} of the time of widened ones",
                     to_string(switchyard::bf16_method()),
                     bf16_seconds_.native / bf16_seconds_.widened);
}

bool Session::keep_bf16_method(std::optional<Bf16Method> of_checkpoint) {
  if (!multiplies_bf16_on_cpu_ || !of_checkpoint) return true;
  if (*of_checkpoint == Bf16Method::native && std::isinf(bf16_seconds_.native)) return false;
  set_bf16_method(*of_checkpoint);
  return true;
}

void Session::choose_bf16_method() {
  bf16_seconds_ = measure_bf16_methods();
  double seconds[] = {bf16_seconds_.native, bf16_seconds_.widened};
  dist.world().all_reduce(stream, view_of(std::span<double>(seconds)), ReduceOp::sum);
  bf16_seconds_ = {seconds[0], seconds[1]};
  set_bf16_method(bf16_seconds_.faster());
}

}  // namespace switchyard
