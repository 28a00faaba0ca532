#include "layers/decoding/prompt_reader.h"

#include <algorithm>

#include "kernels/runtime/check.h"

namespace switchyard {

PromptReader::PromptReader(Stream& stream, Transformer& model, const DistributedContext& dist)
    : stream_(stream),
      model_(model),
      dist_(dist),
      saved_(stream.device()),
      scratch_(stream.device()) {}

void PromptReader::read(std::span<const int32_t> tokens, KvCache& cache, TensorView logits) {
  const int64_t batch = logits.dim(0), length = std::ssize(tokens) / batch;
  require(length >= 1 && length * batch == std::ssize(tokens),
          "{} tokens are not {} prompts of the same length", tokens.size(), batch);
  MicroBatch prompts{.num_sequences = batch,
                     .seq_len = length,
                     .tokens = Tensor({batch, length}, DType::i32),
                     .targets = {},
                     .document_start = {}};
  std::ranges::copy(tokens, prompts.tokens.data<int32_t>());
  MicroBatch copied;
  copy_to_device(stream_, prompts, copied);
  StepContext ctx{.stream = stream_,
                  .saved = saved_,
                  .scratch = scratch_,
                  .dist = dist_,
                  .batch = copied,
                  .scales = {},
                  .dropless = true};
  model_.forward_cached(ctx, cache, logits);
  saved_.reset();
  scratch_.reset();
  stream_.synchronize();  // The tokens' memory is freed on return.
}

}  // namespace switchyard
