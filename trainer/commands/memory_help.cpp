#include "trainer/commands/memory_help.h"

#include <fmt/format.h>

#include "kernels/runtime/check.h"
#include "kernels/runtime/memory.h"
#include "trainer/data/tokenizer.h"
#include "trainer/planning/memory_advice.h"

namespace switchyard {
namespace {

// The bytes that a rank can use. "cuda" gives each rank a device of its own; all ranks of a machine
// share the processors' memory, or a device that is named by its number.
int64_t memory_of_a_rank(const MpiRuntime& mpi, const RunConfig& config, size_t total_bytes) {
  // CUDA itself, other programs, and routing that is not quite balanced need the rest.
  constexpr double kUsableShare = 0.95;
  const int ranks = config.run.device == "cuda" ? 1 : mpi.local_size();
  return static_cast<int64_t>(kUsableShare * static_cast<double>(total_bytes)) / ranks;
}

}  // namespace

int with_memory_help(const MpiRuntime& mpi, const RunConfig& config,
                     const std::function<int()>& body) {
  try {
    return body();
  } catch (const OutOfMemory& error) {
    RunConfig sized = config;
    if (sized.model.vocab_size == 0) {
      sized.model.vocab_size = make_tokenizer(config.data.tokenizer)->vocab_size();
    }
    const int64_t available = memory_of_a_rank(mpi, config, error.memory().total_bytes);
    throw Error(fmt::format("{}\n  {}", error.what(),
                            advise_on_memory(sized, mpi.world_size(), available)));
  }
}

}  // namespace switchyard
