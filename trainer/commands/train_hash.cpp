#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/newest_model.h"
#include "trainer/data/open_data.h"
#include "trainer/hashing/hash_training.h"

namespace switchyard {

int train_hash_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  RunConfig config = loaded.config;
  const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(mpi, config);
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session, tokenizer->hash());
  HashTraining training(mpi, config, *tokenizer, session, model.fingerprint);
  return training.run() ? kExitDone : kExitStopped;
}

}  // namespace switchyard
