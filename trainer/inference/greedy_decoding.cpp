#include "trainer/inference/greedy_decoding.h"

#include <algorithm>
#include <cmath>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

constexpr int32_t kNotFinite = -1;  // in the place of a token

MicroBatch make_batch(const GreedyRequest& request) {
  require(request.prompt.size() >= 2, "a prompt of {} tokens is too short: give at least 2",
          request.prompt.size());
  require(request.max_tokens >= 1, "an answer of {} tokens is none", request.max_tokens);
  const int64_t columns = std::ssize(request.prompt) + request.max_tokens - 1;
  MicroBatch batch{.num_sequences = 1,
                   .seq_len = columns,
                   .tokens = Tensor({1, columns}, DType::i32),
                   .targets = {},
                   .document_start = {}};
  std::ranges::copy(request.prompt, batch.tokens.data<int32_t>());
  return batch;
}

}  // namespace

GreedyDecoding::GreedyDecoding(Stream& stream, Transformer& model, const DistributedContext& dist,
                               const GreedyRequest& request)
    : stream_(stream),
      dist_(dist),
      prompt_(std::ssize(request.prompt)),
      vocab_size_(request.vocab_size),
      end_token_(request.end_token),
      batch_(make_batch(request)),
      decoding_(stream, model, dist, batch_, prompt_ - 1, request.prompt_queries) {
  require(vocab_size_ >= 1 && vocab_size_ <= model.config().vocab_size,
          "the tokenizer has {} tokens, the model {}", vocab_size_, model.config().vocab_size);
}

int32_t GreedyDecoding::likeliest(ConstTensorView logits) {
  const std::span<const float> known(logits.data<float>(), static_cast<size_t>(vocab_size_));
  const bool finite = std::ranges::all_of(known, [](float logit) { return std::isfinite(logit); });
  auto token =
      finite ? static_cast<int32_t>(std::ranges::max_element(known) - known.begin()) : kNotFinite;
  // Ranks that share a model have the same logits up to the order of sums.
  if (!works_alone(dist_)) dist_.world().broadcast(stream_, view_of(std::span(&token, 1)), 0);
  if (token != kNotFinite) return token;
  const char* text =
      "the logits are not finite: the model has diverged; name an earlier checkpoint with "
      "checkpoint.resume";
  if (works_alone(dist_)) fail("{}", text);
  throw CollectiveError(text);
}

std::vector<int32_t> GreedyDecoding::run(
    const SelectorFactory& selectors,
    const std::function<bool(std::span<const int32_t>)>& is_complete) {
  std::vector<int32_t> answer;
  decoding_.run(selectors, [&](int64_t position, ConstTensorView logits) {
    const int32_t token = likeliest(logits);
    if (token == end_token_) return false;
    answer.push_back(token);
    if (position + 1 < batch_.seq_len) batch_.tokens.data<int32_t>()[position + 1] = token;
    return !is_complete(answer);
  });
  return answer;
}

bool works_alone(const DistributedContext& dist) {
  return dist.tp().size() == 1 && dist.ep().size() == 1;
}

}  // namespace switchyard
