#pragma once

#include <string>
#include <vector>

#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/checkpoint/methods.h"
#include "trainer/config/model_options.h"
#include "trainer/config/run_config.h"
#include "trainer/training/method_choice.h"

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
        model(stream, config.model, dist, model_options(config, dist, stream.device())) {
    if (config.run.compute_dtype == DType::bf16) choose_methods(mpi, config);
  }

  // How this run computes ops that have several methods.
  Methods methods() const;
  // A line for each of them and what was measured, for people.
  std::vector<std::string> describe_methods() const;
  // Goes on with the methods of a checkpoint, so that it goes on with the same bits. Returns a line
  // for each that cannot be kept, because some rank does not have it.
  //   name  of the checkpoint
  std::vector<std::string> keep_methods(const Methods& of_checkpoint, const std::string& name);

  Stream stream;
  DistributedContext dist;
  Transformer model;

 private:
  void choose_methods(MpiRuntime& mpi, const RunConfig& config);

  MethodChoice<Bf16Method> bf16_products_;             // on the CPU
  MethodChoice<ExpertProductMethod> expert_products_;  // on CUDA devices
  MethodChoice<AttentionMethod> attention_;            // on CUDA devices, without documents
};

}  // namespace switchyard
