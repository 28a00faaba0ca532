#pragma once

#include <chrono>

#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/config/model_options.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// The device of this rank. "cuda" gives each rank of a machine a GPU of its own; "cuda:N" gives all
// ranks the same one. Throws CollectiveError if there are too few; collective over the world.
Device choose_device(MpiRuntime& mpi, const std::string& name);

// The options of a run's model. Gradients that travel over MPI during the backward pass do so in
// smaller buckets than over NCCL.
TransformerOptions model_options(const RunConfig& config, const DistributedContext& dist,
                                 Device device);

// This rank's part of a model, and the groups of the rank. The commands train, eval, generate and
// bench start from a Session.
struct Session {
  // Collective over the world. `config` has been validated, and its model.vocab_size is not 0.
  Session(MpiRuntime& mpi, const RunConfig& config)
      : stream(choose_device(mpi, config.run.device)),
        dist(mpi, ParallelLayout(mpi.world_size(), config.parallel.tp, config.parallel.ep),
             stream.device()),
        model(stream, config.model, dist, model_options(config, dist, stream.device())) {
    if (mpi.world_size() > 1) {
      mpi.watchdog().start(std::chrono::seconds(config.run.collective_timeout));
    }
  }

  Stream stream;
  DistributedContext dist;
  Transformer model;
};

}  // namespace switchyard
