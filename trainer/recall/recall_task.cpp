#include "trainer/recall/recall_task.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <numeric>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/recall/draws.h"

namespace switchyard {
namespace {

using V = RecallVocabulary;

constexpr double kHeldOutShare = 0.25;
constexpr int64_t kNeedleTokens = 3;
constexpr int64_t kWalk = 4;                // most answers to a question of a walk
constexpr int64_t kWalkTokens = 2 + kWalk;  // and its question
constexpr int64_t kEchoTokens = 9;          // "ask a b a b a b a b"
constexpr int64_t kTaskAndEnd = 2;          // the first and the last token of a document
// Most different keys and values of one sample: enough of the vocabulary remains to choose from.
constexpr int64_t kMostKeys = V::kNumKeys / 4 * 3;
constexpr int64_t kMostValues = V::kNumValues / 4 * 3;

// The needles and tokens of one question, and the most questions that the vocabulary allows.
struct QuestionSize {
  int64_t needles, tokens, most;
};

QuestionSize question_size(const RecallSection& options, RecallTask task) {
  switch (task) {
    case RecallTask::single:
    case RecallTask::multi_query:
      return {1, 3, kMostKeys};
    case RecallTask::multi_key:  // its needles do not depend on the questions
      return {0, 3, kMostKeys};
    case RecallTask::multi_value:
      return {options.values, 2 + options.values, kMostValues / options.values};
    case RecallTask::variable_tracking:
      return {options.hops + 1, 3 + options.hops, kMostKeys / (options.hops + 1)};
    case RecallTask::practice:
      return {1, kWalkTokens, kMostKeys};
  }
  fail("unknown recall task");
}

int64_t share_of(double share, int64_t length) {
  return static_cast<int64_t>(share * static_cast<double>(length));
}

// The number of needles of a multi_key sample.
int64_t distractors(const RecallSection& options, int64_t length) {
  return std::clamp<int64_t>(share_of(options.distractor_share, length) / kNeedleTokens, 1,
                             kMostKeys);
}

int64_t most_questions(const RecallSection& options, RecallTask task, int64_t length) {
  const QuestionSize size = question_size(options, task);
  int64_t room = share_of(options.train_share, length) - kTaskAndEnd, most = size.most;
  if (task == RecallTask::multi_key) {
    room -= distractors(options, length) * kNeedleTokens;
    most = distractors(options, length);
  }
  return std::clamp<int64_t>(room / (size.tokens + size.needles * kNeedleTokens), 1, most);
}

RecallTask task_at(const RecallSection& options, int64_t index) {
  return options.tasks[static_cast<size_t>(index) % options.tasks.size()];
}

class SampleMaker {
 public:
  SampleMaker(const RecallSection& options, RecallPart part, int64_t index, int64_t length)
      : options_(options),
        part_(part),
        length_(length),
        draws_({random_bits({options.seed, stream_id("recall")}, static_cast<uint64_t>(part)),
                static_cast<uint64_t>(index)}) {
    sample_.task = is_practice() ? RecallTask::practice : task_at(options, index);
    keys_ = shuffled_words(V::kFirstKey, V::kNumKeys);
    values_ = shuffled_words(V::kFirstValue, V::kNumValues);
  }

  RecallSample make() {
    const int64_t questions = num_questions();
    switch (sample_.task) {
      case RecallTask::single:
      case RecallTask::multi_query:
        ask_for_needles(questions, questions);
        break;
      case RecallTask::multi_key:
        ask_for_needles(distractors(options_, length_), questions);
        break;
      case RecallTask::multi_value:
        ask_for_values(questions);
        break;
      case RecallTask::variable_tracking:
        ask_for_variables(questions);
        break;
      case RecallTask::practice:
        if (draws_.below(2) == 0) {
          ask_for_echoes();
        } else {
          ask_for_walks();
        }
        break;
    }
    write_haystack();
    write_questions();
    return std::move(sample_);
  }

 private:
  struct Question {
    int32_t asked;
    std::vector<int32_t> answers;
  };

  std::vector<int32_t> shuffled_words(int32_t first, int32_t count) {
    std::vector<int32_t> words(static_cast<size_t>(count));
    std::iota(words.begin(), words.end(), first);
    draws_.shuffle(words);
    return words;
  }

  bool is_practice() {
    const bool wished = part_ == RecallPart::train && draws_.uniform() < options_.practice_share;
    return wished && practice_room() >= std::max(kNeedleTokens + kWalkTokens, kEchoTokens);
  }

  // Half of the training samples have as many as fit: a single answer teaches little.
  int64_t num_questions() {
    if (part_ == RecallPart::train) {
      const int64_t most = most_questions(options_, sample_.task, length_);
      return draws_.below(2) == 0 ? most : 1 + draws_.below(most);
    }
    return sample_.task == RecallTask::multi_query ? options_.queries : 1;
  }

  bool fits(int32_t first, int32_t second) const {
    return is_held_out_needle(first, second) == (part_ == RecallPart::held_out);
  }
  // Takes out of `words` one that may follow `first`.
  int32_t take_second(int32_t first, std::vector<int32_t>& words) {
    // The words are in random order already.
    const auto found =
        std::ranges::find_if(words, [&](int32_t second) { return fits(first, second); });
    require(found != words.end(),
            "no needle is left for {}: lower data.recall.values, hops or train_share",
            to_string(sample_.task));
    const int32_t second = *found;
    words.erase(found);
    return second;
  }
  int32_t any_value(int32_t key) {
    for (;;) {
      const auto value = static_cast<int32_t>(V::kFirstValue + draws_.below(V::kNumValues));
      if (fits(key, value)) return value;
    }
  }
  int32_t take_last(std::vector<int32_t>& words) {
    const int32_t word = words.back();
    words.pop_back();
    return word;
  }

  void add_needle(int32_t first, int32_t second) { needles_.push_back({V::kSet, first, second}); }

  void ask_for_needles(int64_t needles, int64_t questions) {
    for (int64_t i = 0; i < needles; ++i) {
      const int32_t key = take_last(keys_), value = any_value(key);
      add_needle(key, value);
      if (i < questions) questions_.push_back({key, {value}});
    }
    draws_.shuffle(needles_);
  }

  // The group of each needle: `size` needles of each of `groups`, in random order.
  std::vector<size_t> mixed_groups(int64_t groups, int64_t size) {
    std::vector<size_t> owners;
    for (int64_t i = 0; i < groups * size; ++i) owners.push_back(static_cast<size_t>(i % groups));
    draws_.shuffle(owners);
    return owners;
  }

  void ask_for_values(int64_t questions) {
    for (int64_t i = 0; i < questions; ++i) questions_.push_back({take_last(keys_), {}});
    for (const size_t owner : mixed_groups(questions, options_.values)) {
      Question& question = questions_[owner];
      question.answers.push_back(take_second(question.asked, values_));
      add_needle(question.asked, question.answers.back());
    }
  }

  void ask_for_variables(int64_t questions) {
    for (int64_t i = 0; i < questions; ++i) questions_.push_back({take_last(values_), {}});
    for (const size_t owner : mixed_groups(questions, options_.hops + 1)) {
      Question& question = questions_[owner];
      const int32_t source = question.answers.empty() ? question.asked : question.answers.back();
      question.answers.push_back(take_second(source, keys_));
      add_needle(source, question.answers.back());
    }
  }

  int64_t practice_room() const { return share_of(options_.train_share, length_) - kTaskAndEnd; }

  // Makes a path through words of any kind, whose steps are scattered over the haystack, and asks
  // for as many walks along it as there is room for, each from a random step.
  void ask_for_walks() {
    int64_t room = practice_room();
    const int64_t most = std::min(room / (kNeedleTokens + kWalkTokens), kMostKeys);
    const int64_t steps = 1 + draws_.below(most);
    std::vector<int32_t> words = keys_;
    words.insert(words.end(), values_.begin(), values_.end());
    draws_.shuffle(words);
    std::vector<int32_t> path = {take_last(words)};
    for (int64_t i = 0; i < steps; ++i) {
      path.push_back(take_second(path.back(), words));
      add_needle(path[path.size() - 2], path.back());
    }
    draws_.shuffle(needles_);
    for (room -= steps * kNeedleTokens; room >= kWalkTokens; room -= kWalkTokens) {
      const auto from = path.begin() + draws_.below(steps);
      const auto end = path.end() - from > kWalk ? from + kWalk + 1 : path.end();
      questions_.push_back({*from, {from + 1, end}});
    }
  }

  // Two words in turn, for as many pairs as fit: each word repeats the one before the last.
  void ask_for_echoes() {
    for (int64_t i = 0; i < practice_room() / kEchoTokens; ++i) {
      const int32_t a = any_word(), b = any_word();
      questions_.push_back({a, {b, a, b, a, b, a, b}});
    }
  }
  int32_t any_word() {
    return static_cast<int32_t>(V::kFirstKey + draws_.below(V::kSize - V::kFirstKey));
  }

  int64_t question_tokens() const {
    int64_t tokens = 0;
    for (const Question& question : questions_) tokens += 2 + std::ssize(question.answers);
    return tokens;
  }
  int64_t needle_tokens() const {
    int64_t tokens = 0;
    for (const std::vector<int32_t>& needle : needles_) tokens += std::ssize(needle);
    return tokens;
  }

  // Writes needles and fillers. The places of the needles are drawn uniformly, in one pass
  // (selection sampling, Knuth 3.4.2 S).
  void write_haystack() {
    const int64_t needles = std::ssize(needles_);
    const int64_t fillers = length_ - kTaskAndEnd - needle_tokens() - question_tokens();
    assert(fillers >= 0);
    std::vector<int32_t>& tokens = sample_.tokens;
    tokens.push_back(V::kFirstTask + static_cast<int32_t>(sample_.task));
    int64_t written = 0;
    for (int64_t left = fillers + needles; left > 0; --left) {
      if (draws_.below(left) >= needles - written) {
        tokens.push_back(static_cast<int32_t>(V::kFirstFiller + draws_.below(V::kNumFillers)));
        continue;
      }
      const std::vector<int32_t>& needle = needles_[static_cast<size_t>(written++)];
      tokens.insert(tokens.end(), needle.begin(), needle.end());
    }
  }

  void write_questions() {
    draws_.shuffle(questions_);
    for (const Question& question : questions_) {
      sample_.tokens.insert(sample_.tokens.end(), {V::kAsk, question.asked});
      for (const int32_t answer : question.answers) {
        sample_.answers.push_back({static_cast<int64_t>(sample_.tokens.size()), answer});
        sample_.tokens.push_back(answer);
      }
    }
  }

  const RecallSection& options_;
  RecallPart part_;
  int64_t length_;
  Draws draws_;
  std::vector<int32_t> keys_, values_;         // words that the sample does not use yet
  std::vector<std::vector<int32_t>> needles_;  // in the order of the haystack
  std::vector<Question> questions_;
  RecallSample sample_;
};

// Tokens of a held-out sample without its fillers; a training sample with a single question has no
// more.
int64_t least_length(const RecallSection& options, RecallTask task, int64_t length) {
  const QuestionSize size = question_size(options, task);
  const int64_t questions = task == RecallTask::multi_query ? options.queries : 1;
  const int64_t others = task == RecallTask::multi_key ? distractors(options, length) : 0;
  return kTaskAndEnd + questions * (size.tokens + size.needles * kNeedleTokens) +
         others * kNeedleTokens;
}

std::optional<std::string> misfit(const RecallSection& options, RecallTask task, int64_t length) {
  const int64_t least = least_length(options, task, length);
  if (least <= length) return std::nullopt;
  return fmt::format(
      "a sample of {} takes {} tokens and does not fit {}; make samples longer, or the task "
      "smaller",
      to_string(task), least, length);
}

}  // namespace

bool is_held_out_needle(int32_t first, int32_t second) {
  const auto pair = static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(second);
  return random_uniform({0, stream_id("held-out needle")}, pair) < kHeldOutShare;
}

RecallSample make_recall_sample(const RecallSection& options, RecallPart part, int64_t index,
                                int64_t length) {
  require(!options.tasks.empty(), "data.recall.tasks is empty");
  const RecallTask task = task_at(options, index);
  if (const auto problem = misfit(options, task, length)) fail("data.recall: {}", *problem);
  return SampleMaker(options, part, index, length).make();
}

std::vector<int64_t> recall_lengths(const RecallSection& options, int64_t seq_len) {
  std::vector<int64_t> lengths = {seq_len};
  while (options.shortest > 0 && lengths.back() % 2 == 0 &&
         lengths.back() / 2 >= options.shortest) {
    lengths.push_back(lengths.back() / 2);
  }
  return lengths;
}

std::vector<ConfigProblem> check_recall(const RecallSection& options, int64_t seq_len) {
  std::vector<ConfigProblem> problems;
  if (options.tasks.empty())
    problems.push_back({"data.recall.tasks", "is empty; name at least one task"});
  if (options.shortest > seq_len) {
    problems.push_back(
        {"data.recall.shortest", fmt::format("{} is more than model.seq_len = {}; choose less",
                                             options.shortest, seq_len)});
  }
  const int64_t shortest = recall_lengths(options, seq_len).back();
  for (const RecallTask task : options.tasks) {
    if (const auto problem = misfit(options, task, shortest)) {
      problems.push_back(
          {shortest < seq_len ? "data.recall.shortest" : "data.recall.tasks", *problem});
    }
  }
  return problems;
}

std::vector<ConfigProblem> recall_problems(const RunConfig& config) {
  const RecallSection& options = config.data.recall;
  const int64_t seq_len = config.model.seq_len;
  if (config.data.tokenizer.type != TokenizerType::recall || seq_len <= 0) return {};
  std::vector<ConfigProblem> problems = check_recall(options, seq_len);
  const bool several = recall_lengths(options, seq_len).size() > 1;
  if (several && config.data.mask != AttentionMask::document) {
    problems.push_back(
        {"data.mask",
         fmt::format("samples share sequences (data.recall.shortest = {}): set it to document",
                     options.shortest)});
  }
  return problems;
}

bool is_right_answer(RecallTask task, std::span<const int32_t> targets, int64_t position,
                     int32_t token) {
  const auto rest = targets.subspan(static_cast<size_t>(position));
  if (task != RecallTask::multi_value) return token == rest.front();
  const auto end = std::ranges::find_if(rest, [](int32_t target) { return target < 0; });
  return std::find(rest.begin(), end, token) != end;
}

}  // namespace switchyard
