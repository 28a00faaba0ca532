#include "layers/decoding/cached_steps.h"

#include <algorithm>

#include "kernels/basic/elementwise.h"
#include "kernels/moe/slot_products.h"
#include "kernels/runtime/check.h"
#include "layers/decoding/cached_step.h"

namespace switchyard {
namespace {

// See CachedSteps::obstacle.
std::string obstacle_of(const Stream& stream, Transformer& model, const DistributedContext& dist,
                        const KvCache& cache, int64_t batch) {
  if (!stream.device().runs_cuda()) return "there is no CUDA device";
  if (dist.tp().size() > 1 || dist.ep().size() > 1) return "several ranks share the model";
  if (stream.profiler()) return "the time of their parts is measured";
  if (model.first_moe_layer() && batch > kMostSlotTokens) {
    return fmt::format("an MoE layer has more than {} tokens", kMostSlotTokens);
  }
  for (const KvCacheLayer& layer : cache.layers) {
    if (layer.offloaded) return "the cache is off the device";
    if (layer.selector && !layer.selector->is_recordable()) {
      return "the method keeps numbers on the host";
    }
  }
  return {};
}

}  // namespace

CachedSteps::CachedSteps(Stream& stream, Transformer& model, const DistributedContext& dist,
                         KvCache& cache, int64_t batch, Recording recording)
    : stream_(stream),
      model_(model),
      dist_(dist),
      cache_(cache),
      batch_size_(batch),
      obstacle_(recording == Recording::never ? "that is switched off"
                                              : obstacle_of(stream, model, dist, cache, batch)),
      saved_(stream.device()),
      scratch_(stream.device()),
      batch_{.num_sequences = batch,
             .seq_len = 1,
             .tokens = Tensor({batch, 1}, DType::i32, stream.device()),
             .targets = {},
             .document_start = {}},
      host_values_(static_cast<size_t>(batch + num_step_values(cache, batch)) * sizeof(int32_t)),
      values_({batch + num_step_values(cache, batch)}, DType::i32, stream.device()),
      copied_(stream.device()) {
  require(cache.length > 0, "the prompt must be read before its continuation");
}

void CachedSteps::write_values(std::span<const int32_t> tokens) {
  const Shape shape{values_.num_elements()};
  const TensorView host(host_values_.data(), shape, DType::i32);
  copied_.synchronize();  // the values of the step before
  const std::span<int32_t> all(host.data<int32_t>(), static_cast<size_t>(shape.num_elements()));
  std::ranges::copy(tokens, all.begin());
  write_step_values(cache_, batch_size_, all.subspan(tokens.size()));
  copy(stream_, host, values_);
  copied_.record(stream_);
}

void CachedSteps::forward(TensorView logits) {
  const ConstTensorView values = values_;
  copy(stream_, values.rows(0, batch_size_), batch_.tokens.view().reshape({batch_size_}));
  const CachedStep step =
      step_of(cache_, batch_size_, values.rows(batch_size_, values.num_elements() - batch_size_),
              /*longest=*/obstacle_.empty() ? cache_.max_len : cache_.length + 1);
  StepContext ctx{.stream = stream_,
                  .saved = saved_,
                  .scratch = scratch_,
                  .dist = dist_,
                  .batch = batch_,
                  .scales = {},
                  .dropless = true,
                  .step = &step};
  model_.forward_step(ctx, cache_, logits);
}

// The first step allocates what a recorded one must find: memory, and handles of libraries.
void CachedSteps::run(std::span<const int32_t> tokens, TensorView logits) {
  require(std::ssize(tokens) == batch_size_, "{} tokens do not fit a batch of {}", tokens.size(),
          batch_size_);
  require(cache_.length < cache_.max_len, "the cache of {} tokens is full", cache_.max_len);
  require(logits_ == nullptr || logits_ == logits.raw(), "the logits lie in other memory");
  logits_ = logits.raw();
  write_values(tokens);
  if (has_allocated_ && obstacle_.empty()) {
    if (!graph_) graph_.emplace(stream_, [&] { forward(logits); });
    graph_->launch(stream_);
  } else {
    forward(logits);
    saved_.reset();
    scratch_.reset();
    has_allocated_ = true;
  }
  ++cache_.length;
}

}  // namespace switchyard
