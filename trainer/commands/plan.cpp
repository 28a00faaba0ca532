#include "trainer/planning/plan.h"

#include <fmt/format.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/config/config_error.h"
#include "trainer/data/open_data.h"

namespace switchyard {

int plan_command(MpiRuntime& mpi, const LoadedConfig& loaded, int num_ranks) {
  RunConfig config = loaded.config;
  if (config.model.vocab_size == 0) open_tokenizer(mpi, config);
  if (mpi.rank() != 0) return kExitDone;
  const ParallelLayout layout(num_ranks, config.parallel.tp, config.parallel.ep);
  fmt::print("{}", describe_plan(make_plan(config, layout), config));
  return kExitDone;
}

}  // namespace switchyard
