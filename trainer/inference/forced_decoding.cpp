#include "trainer/inference/forced_decoding.h"

#include <algorithm>

#include "kernels/runtime/check.h"
#include "kernels/runtime/host_mirror.h"
#include "kernels/runtime/integers.h"
#include "layers/decoding/cached_steps.h"
#include "layers/decoding/prompt_reader.h"

namespace switchyard {
ForcedDecoding::ForcedDecoding(Stream& stream, Transformer& model, const DistributedContext& dist,
                               const MicroBatch& batch, int64_t prefill,
                               std::span<const int64_t> prompt_queries)
    : stream_(stream),
      model_(model),
      dist_(dist),
      batch_(batch),
      prefill_(prefill),
      rows_(round_up(batch.num_sequences, dist.tp().size())),
      cache_(model.make_cache(rows_, batch.seq_len)),
      logits_({rows_, model.config().vocab_size}, DType::f32, stream.device()) {
  require(prefill >= 1 && prefill < batch.seq_len,
          "of a sequence of {} tokens, {} cannot be read at once: at least 1 must be, and 1 must "
          "be left",
          batch.seq_len, prefill);
  for (KvCacheLayer& layer : cache_.layers) {
    for (const int64_t queries : prompt_queries) {
      if (queries > 0) keep_prompt_attention(layer, queries);
    }
  }
  PromptReader(stream, model, dist).read(tokens(0, prefill), cache_, logits_);
}

// Tokens [first, first + count) of every row; padding rows repeat the last sequence.
std::vector<int32_t> ForcedDecoding::tokens(int64_t first, int64_t count) const {
  std::vector<int32_t> of_rows;
  for (int64_t row = 0; row < rows_; ++row) {
    const int64_t source = std::min(row, batch_.num_sequences - 1) * batch_.seq_len + first;
    const int32_t* from = batch_.tokens.data<int32_t>() + source;
    of_rows.insert(of_rows.end(), from, from + count);
  }
  return of_rows;
}

void ForcedDecoding::run(const SelectorFactory& selectors, const OnLogits& on_logits) {
  cache_.length = prefill_;
  {
    Workspace scratch(stream_.device());
    attach_selectors(stream_, scratch, cache_, selectors);
  }
  CachedSteps steps(stream_, model_, dist_, cache_, rows_);
  HostMirror host(logits_);
  for (int64_t position = prefill_; position < batch_.seq_len; ++position) {
    steps.run(tokens(position, 1), logits_);
    host.download(stream_);
    if (!on_logits(position, host.host().rows(0, batch_.num_sequences))) break;
  }
}

}  // namespace switchyard
