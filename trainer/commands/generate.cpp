#include "trainer/inference/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/newest_model.h"
#include "trainer/data/open_data.h"
#include "trainer/hashing/load_decode_setup.h"
#include "trainer/inference/far_file.h"

namespace switchyard {
namespace {

// Rank 0 alone needs the tokenizer to work; the others get its tokens.
std::vector<int32_t> encode_prompt(MpiRuntime& mpi, const Tokenizer& tokenizer,
                                   const std::string& prompt) {
  std::vector<int32_t> tokens;
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    Encoding encoding = tokenizer.encode_checked(prompt);
    if (encoding.changed_at) {
      fmt::print(stderr, "note: the tokens of --prompt do not restore it from byte {} on\n",
                 *encoding.changed_at);
    }
    tokens = std::move(encoding.tokens);
    // A new document follows the end of another one.
    if (tokens.empty()) tokens = {tokenizer.end_of_document()};
  });
  Stream stream;
  auto count = static_cast<int64_t>(tokens.size());
  mpi.world().broadcast(stream, view_of(std::span(&count, 1)), 0);
  tokens.resize(static_cast<size_t>(count));
  mpi.world().broadcast(stream, view_of(std::span(tokens)), 0);
  return tokens;
}

}  // namespace

int generate_command(MpiRuntime& mpi, const LoadedConfig& loaded, const GenerateOptions& options) {
  RunConfig config = loaded.config;
  const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(mpi, config);
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session, tokenizer->hash());
  std::vector<int32_t> prompt = encode_prompt(mpi, *tokenizer, options.prompt);
  const int64_t context =
      std::min(config.model.seq_len, std::ssize(prompt) + int64_t{options.max_tokens});
  DecodeSetup setup = load_decode_setup(mpi, config, config.decode.keys, config.hash.bits, context,
                                        session, model.fingerprint);
  run_collectively(mpi.world(),
                   [&] { setup.far = make_far_memory(config, session.stream.device()); });

  GenerationRequest request{.prompt = std::move(prompt),
                            .max_tokens = options.max_tokens,
                            .num_samples = options.num_samples,
                            .end_token = tokenizer->end_of_document(),
                            .vocab_size = tokenizer->vocab_size(),
                            .sampling = options.sampling,
                            .seed = config.run.seed,
                            .setup = &setup};
  run_collectively(mpi.world(), [&] {
    require(static_cast<int64_t>(request.prompt.size()) < config.model.seq_len,
            "--prompt has {} tokens, model.seq_len is {}: shorten it", request.prompt.size(),
            config.model.seq_len);
    const int64_t room = config.model.seq_len - static_cast<int64_t>(request.prompt.size());
    if (mpi.rank() == 0 && options.max_tokens > room) {
      fmt::print(
          stderr,
          "note: --max-tokens {} exceeds the context, model.seq_len {}: behind the {} tokens "
          "of the prompt at most {} are added\n",
          options.max_tokens, config.model.seq_len, request.prompt.size(), room);
    }
  });
  std::vector<std::vector<int32_t>> samples =
      generate(session.stream, session.model, session.dist, request);
  if (mpi.rank() != 0) return kExitDone;
  for (std::vector<int32_t>& sample : samples) {
    if (!sample.empty() && sample.back() == tokenizer->end_of_document()) sample.pop_back();
    std::vector<int32_t> text = request.prompt;
    text.insert(text.end(), sample.begin(), sample.end());
    fmt::print("{}\n", tokenizer->decode(text));
    if (samples.size() > 1) fmt::print("---\n");
  }
  return kExitDone;
}

}  // namespace switchyard
