#include "trainer/checkpoint/inspect.h"

#include <fmt/format.h>

#include <filesystem>

#include "kernels/check.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/data/token_file.h"

namespace switchyard {
namespace {

void inspect_token_file(const std::string& path, bool verify) {
  const TokenFile file(path);
  const TokenFileInfo& info = file.info();
  fmt::print("{}: {} tokens in {} documents\n", path, file.num_tokens(), file.num_documents());
  fmt::print("vocabulary {}, end of document {}, tokenizer '{}', source '{}'\n", info.vocab_size,
             info.end_of_document, info.tokenizer, info.source);
  if (!verify) return;
  file.verify();
  fmt::print("intact: every checksum matches\n");
}

}  // namespace

int inspect_command(MpiRuntime& mpi, const std::string& path, bool verify) {
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    require(std::filesystem::exists(path), "{} is not there", path);
    if (std::filesystem::is_directory(path)) {
      fmt::print("{}", inspect_checkpoint(path, verify));
    } else {
      inspect_token_file(path, verify);
    }
  });
  return kExitDone;
}

}  // namespace switchyard
