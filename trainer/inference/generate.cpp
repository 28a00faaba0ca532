#include "trainer/inference/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/host_mirror.h"
#include "kernels/runtime/integers.h"
#include "layers/decoding/cached_steps.h"
#include "layers/decoding/prompt_reader.h"

namespace switchyard {
namespace {

constexpr int32_t kNotFinite = -1;  // in the place of a token

// Draws the next token of every sample from its row of logits. All ranks hold the same logits up to
// the order of sums; rank 0 draws for all of them, so all throw if a logit of its is not finite.
std::vector<int32_t> draw(Stream& stream, const DistributedContext& dist,
                          const GenerationRequest& request, int64_t position,
                          ConstTensorView logits) {
  const int64_t vocab = logits.dim(1);
  const int64_t drawable = request.vocab_size > 0 ? request.vocab_size : vocab;
  std::vector<int32_t> next(static_cast<size_t>(logits.dim(0)));
  for (size_t b = 0; b < next.size(); ++b) {
    const RandomKey key{request.seed, stream_id("sample") + b};
    const std::span row(logits.data<float>() + static_cast<int64_t>(b) * vocab,
                        static_cast<size_t>(drawable));
    const bool finite = std::ranges::all_of(row, [](float logit) { return std::isfinite(logit); });
    next[b] = finite ? sample_token(row, request.sampling,
                                    random_uniform(key, static_cast<uint64_t>(position)))
                     : kNotFinite;
  }
  dist.world().broadcast(stream, view_of(std::span(next)), 0);
  if (std::ranges::count(next, kNotFinite) > 0) {
    throw CollectiveError(
        fmt::format("the logits behind token {} are not finite: the model has diverged; name an "
                    "earlier checkpoint with checkpoint.resume",
                    position));
  }
  return next;
}

// The prompt as often as there are sequences.
std::vector<int32_t> repeated(std::span<const int32_t> prompt, int64_t batch) {
  std::vector<int32_t> tokens;
  for (int64_t b = 0; b < batch; ++b) tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  return tokens;
}

}  // namespace

std::vector<std::vector<int32_t>> generate(Stream& stream, Transformer& model,
                                           const DistributedContext& dist,
                                           const GenerationRequest& request) {
  require(!request.prompt.empty(), "there is no prompt to continue");
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  const int64_t context = model.config().seq_len;
  require(prompt_len < context, "the prompt has {} tokens, the model's context {}", prompt_len,
          context);
  require(request.vocab_size >= 0 && request.vocab_size <= model.config().vocab_size,
          "the tokenizer has {} tokens, the model only {}", request.vocab_size,
          model.config().vocab_size);
  // The tp ranks share the sequences.
  const int64_t tp = dist.tp().size();
  const int64_t batch = round_up(request.num_samples, tp);
  const int64_t max_len = std::min(context, prompt_len + request.max_tokens);

  KvCache cache;
  run_collectively(dist.world(), [&] { cache = model.make_cache(batch, max_len, request.setup); });
  {
    Workspace scratch(stream.device());
    if (request.setup) attach_selectors(stream, scratch, cache, selectors_of(*request.setup));
  }
  Tensor logits({batch, model.config().vocab_size}, DType::f32, stream.device());
  HostMirror host_logits(logits);
  std::vector<std::vector<int32_t>> samples(static_cast<size_t>(batch));
  std::vector<bool> ended(static_cast<size_t>(batch), false);
  PromptReader(stream, model, dist).read(repeated(request.prompt, batch), cache, logits);
  CachedSteps steps(stream, model, dist, cache, batch);
  for (int64_t position = prompt_len; position < max_len; ++position) {
    host_logits.download(stream);
    const std::vector<int32_t> next = draw(stream, dist, request, position, host_logits.host());
    for (size_t b = 0; b < next.size(); ++b) {
      if (!ended[b]) samples[b].push_back(next[b]);
      ended[b] = ended[b] || next[b] == request.end_token;
    }
    const bool all_ended = std::ranges::all_of(ended, [](bool done) { return done; });
    if (all_ended || position + 1 == max_len) break;
    steps.run(next, logits);  // also for samples that have ended, whose tokens nobody reads
  }
  samples.resize(static_cast<size_t>(request.num_samples));
  return samples;
}

}  // namespace switchyard
