#include "trainer/data/recall_tokenizer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <sstream>
#include <vector>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using V = RecallVocabulary;

struct WordKind {
  char letter;
  int32_t first, count;
};
constexpr std::array<WordKind, 3> kWordKinds = {{{'f', V::kFirstFiller, V::kNumFillers},
                                                 {'k', V::kFirstKey, V::kNumKeys},
                                                 {'v', V::kFirstValue, V::kNumValues}}};

class RecallTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens;
    std::istringstream words{std::string(text)};
    for (std::string word; words >> word;) {
      const auto token = recall_token(word);
      require(token.has_value() && *token != RecallVocabulary::kEndOfDocument,
              "'{}' is no word of the recall tasks (set, ask, {}, f0, k0, v0 ...)", word,
              to_string(RecallTask::single));
      tokens.push_back(*token);
    }
    return tokens;
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    std::vector<std::string> words;
    for (const int32_t token : tokens) {
      const std::string word = recall_word(token);
      if (token != RecallVocabulary::kEndOfDocument) words.push_back(word);
    }
    return fmt::format("{}", fmt::join(words, " "));
  }

  TokenizerType type() const override { return TokenizerType::recall; }
  int64_t vocab_size() const override { return RecallVocabulary::kSize; }
  int32_t end_of_document() const override { return RecallVocabulary::kEndOfDocument; }
  const std::string& hash() const override { return hash_; }

 private:
  std::string hash_ = fmt::format("{:016x}", hash64("recall 1"));
};

}  // namespace

std::optional<RecallTask> recall_task_of(int32_t first_token) {
  const int32_t number = first_token - V::kFirstTask;
  if (number < 0 || number >= V::kNumTasks) return std::nullopt;
  return static_cast<RecallTask>(number);
}

std::string recall_word(int32_t token) {
  require(token >= 0 && token < V::kSize, "token {} is outside the vocabulary of {}", token,
          V::kSize);
  if (token == V::kEndOfDocument) return "end";
  if (token == V::kSet) return "set";
  if (token == V::kAsk) return "ask";
  if (const auto task = recall_task_of(token)) return std::string(to_string(*task));
  const auto kind = std::ranges::find_if(
      kWordKinds, [&](const WordKind& k) { return token < k.first + k.count; });
  return fmt::format("{}{}", kind->letter, token - kind->first);
}

std::optional<int32_t> recall_token(std::string_view word) {
  for (int32_t marker = 0; marker < V::kFirstFiller; ++marker) {
    if (recall_word(marker) == word) return marker;
  }
  for (const WordKind& kind : kWordKinds) {
    if (word.empty() || word.front() != kind.letter) continue;
    int32_t number = 0;
    const char* end = word.data() + word.size();
    const auto [rest, error] = std::from_chars(word.data() + 1, end, number);
    if (error == std::errc() && rest == end && number >= 0 && number < kind.count) {
      return kind.first + number;
    }
  }
  return std::nullopt;
}

std::unique_ptr<Tokenizer> make_recall_tokenizer() { return std::make_unique<RecallTokenizer>(); }

}  // namespace switchyard
