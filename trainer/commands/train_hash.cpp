#include <fmt/format.h>

#include <filesystem>

#include "kernels/check.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/newest_model.h"
#include "trainer/data/open_data.h"
#include "trainer/hashing/collect.h"

namespace switchyard {

int train_hash_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  RunConfig config = loaded.config;
  const OpenData data = open_data(mpi, config, NeedsTraining::yes);
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session);
  for (const char* name : {"train", "held_out"}) {
    const bool train = std::string(name) == "train";
    TokenFile file(train ? config.data.train : config.data.validation);
    DataLoader loader(file, {.seq_len = config.model.seq_len, .vocab_size = config.model.vocab_size, .micro_batch_size = 4, .global_batch_size = 4, .mask = config.data.mask, .seed = config.run.seed});
    QueryKeySet set{.folder = std::filesystem::path(config.run.dir) / "hash/query_keys", .name = name, .key = model.fingerprint, .seed = config.run.seed, .num_sequences = train ? 684 : 128, .sequences_per_block = 4, .first_layer = 0};
    fmt::print("{} {}\n", name, collect_query_keys(session, loader, set));
  }
  return kExitDone;
}

}  // namespace switchyard
