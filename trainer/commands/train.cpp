#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/memory_help.h"
#include "trainer/training/training_run.h"

namespace switchyard {

int train_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  return with_memory_help(mpi, loaded.config, [&] {
    TrainingRun run(mpi, loaded.config);
    return run.run() == TrainingEnd::finished ? kExitDone : kExitStopped;
  });
}

}  // namespace switchyard
