#pragma once

#include <optional>
#include <string>

#include "kernels/linear/bf16_method.h"
#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/config/model_options.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// The device of this rank. "cuda" gives each rank of a machine a GPU of its own: the first that it
// sees if those of all ranks differ, as where CUDA_VISIBLE_DEVICES shows each rank one, else that
// of its place on the machine. "cuda:N" gives all ranks the same one. Throws CollectiveError if
// there are too few; collective over the world.
Device choose_device(MpiRuntime& mpi, const std::string& name);

// From here on no rank waits for ever for another or for its device, not even while groups are
// made. Returns the device.
Device start_watchdog(MpiRuntime& mpi, const RunConfig& config, Device device);

// The options of a run's model. Gradients that travel over MPI during the backward pass do so in
// smaller buckets than over NCCL.
TransformerOptions model_options(const RunConfig& config, const DistributedContext& dist,
                                 Device device);

// This rank's part of a model, and the groups of the rank. The commands train, eval, generate and
// bench start from a Session.
struct Session {
  // Collective over the world. `config` has been validated, and its model.vocab_size is not 0.
  Session(MpiRuntime& mpi, const RunConfig& config)
      : stream(start_watchdog(mpi, config, choose_device(mpi, config.run.device))),
        dist(mpi, ParallelLayout(mpi.world_size(), config.parallel.tp, config.parallel.ep),
             stream.device(),
             {.groups = config.parallel.deduplicate == Deduplicate::host, .hosts = {}}),
        model(stream, config.model, dist, model_options(config, dist, stream.device())),
        multiplies_bf16_on_cpu_(stream.device().kind == DeviceKind::cpu &&
                                config.run.compute_dtype == DType::bf16) {
    if (multiplies_bf16_on_cpu_) choose_bf16_method();
  }

  // How this run multiplies bf16; empty unless it does so on the CPU.
  std::optional<Bf16Method> bf16_method() const;
  // The method and what was measured, for people; empty as above.
  std::string describe_bf16_method() const;
  // Goes on with the method of a checkpoint, so that it goes on with the same bits. Returns false
  // if a processor of the job does not have it.
  bool keep_bf16_method(std::optional<Bf16Method> of_checkpoint);

  Stream stream;
  DistributedContext dist;
  Transformer model;

 private:
  // The method that takes less time on all ranks together is chosen by all of them.
  void choose_bf16_method();

  bool multiplies_bf16_on_cpu_;
  Bf16Seconds bf16_seconds_;  // sums over the ranks
};

}  // namespace switchyard
