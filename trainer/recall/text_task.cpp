#include "trainer/recall/text_task.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>
#include <set>
#include <span>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/recall/draws.h"
#include "trainer/recall/task_words.h"

namespace switchyard {
namespace {

constexpr char kNoise[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
constexpr int64_t kVariableLetters = 5, kExampleLetters = 3;
constexpr int64_t kExampleTokens = 500;

enum class Hay { noise, running_text, needles };
enum class Word { pair, number, uuid };

// The row of a niah task in the table of text_task.h.
struct Niah {
  Hay hay;
  Word key, value;
  int64_t keys = 1, values = 1, queries = 1;
};

Niah niah_of(const TextTasksSection& options, TextTask task) {
  switch (task) {
    case TextTask::niah_single_1:
      return {Hay::noise, Word::pair, Word::number};
    case TextTask::niah_single_2:
      return {Hay::running_text, Word::pair, Word::number};
    case TextTask::niah_single_3:
      return {Hay::running_text, Word::pair, Word::uuid};
    case TextTask::niah_multikey_1:
      return {Hay::running_text, Word::pair, Word::number, options.keys};
    case TextTask::niah_multikey_2:
      return {Hay::needles, Word::pair, Word::number};
    case TextTask::niah_multikey_3:
      return {Hay::needles, Word::uuid, Word::uuid};
    case TextTask::niah_multivalue:
      return {Hay::running_text, Word::pair, Word::number, 1, options.values};
    case TextTask::niah_multiquery:
      return {Hay::running_text, Word::pair, Word::number, options.queries, 1, options.queries};
    case TextTask::vt:
      break;
  }
  fail("{} has no needles of keys", to_string(task));
}

// Keys, values and variables, none of which comes twice.
class Words {
 public:
  explicit Words(RandomKey key) : draws_(key), pairs_(std::size(kAdjectives) * std::size(kNouns)) {
    std::iota(pairs_.begin(), pairs_.end(), size_t{0});
    draws_.shuffle(pairs_);
  }

  Draws& draws() { return draws_; }

  std::string take(Word kind) {
    switch (kind) {
      case Word::pair:
        return pair();
      case Word::number:
        return unused([&] { return std::to_string(1'000'000 + draws_.below(9'000'000)); });
      case Word::uuid:
        return unused([&] { return uuid(); });
    }
    fail("there is no such word");
  }
  std::string number_of_chain() { return std::to_string(10'000 + draws_.below(90'000)); }
  std::string variable(int64_t letters) {
    return unused([&] {
      std::string name;
      for (int64_t i = 0; i < letters; ++i) name += static_cast<char>('A' + draws_.below(26));
      return name;
    });
  }

 private:
  std::string pair() {
    require(!pairs_.empty(), "no word is left for another needle: choose a shorter length");
    const size_t pair = pairs_.back();
    pairs_.pop_back();
    return fmt::format("{}-{}", kAdjectives[pair / std::size(kNouns)],
                       kNouns[pair % std::size(kNouns)]);
  }
  // Of version 4 and variant 1: random, but for the digits that say so (RFC 9562, section 5.4).
  std::string uuid() {
    const auto digits = [&](int64_t below) { return draws_.below(below); };
    const int64_t a = digits(int64_t{1} << 32), b = digits(1 << 16), c = digits(1 << 12);
    const int64_t d = digits(1 << 14) | 1 << 15, e = digits(int64_t{1} << 48);
    return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", a, b, c, d, e);
  }
  std::string unused(const std::function<std::string()>& draw) {
    for (;;) {
      std::string word = draw();
      if (used_.insert(word).second) return word;
    }
  }

  Draws draws_;
  std::vector<size_t> pairs_;  // adjective-noun, by their numbers, that are not used
  std::set<std::string> used_;
};

// A task but for the size of its haystack.
struct Task {
  std::string head, tail;  // before and after the text in which needles are hidden
  std::vector<std::string> needles;
  std::vector<std::string> answers;
};

std::string needle_of(Word value_kind, std::string_view key, std::string_view value) {
  return fmt::format("One of the special magic {} for {} is: {}.",
                     value_kind == Word::uuid ? "uuids" : "numbers", key, value);
}

std::string listed(const std::vector<std::string>& keys) {
  if (keys.size() == 1) return keys.front();
  return fmt::format("{}, and {}", fmt::join(keys.begin(), keys.end() - 1, ", "), keys.back());
}

// The words of RULER's template, which has a singular and a plural.
void ask_for_keys(const TextTasksSection& options, const Niah& niah, const std::string& keys,
                  Task& task) {
  const bool one = niah.queries * niah.values == 1;
  const std::string what =
      std::string(niah.value == Word::uuid ? "uuid" : "number") + (one ? "" : "s");
  task.head += fmt::format(
      "{} special magic {} {} hidden within the following text. Make sure to memorize it. I will "
      "quiz you about the {} afterwards.\n",
      one ? "A" : "Some", what, one ? "is" : "are", what);
  task.tail = fmt::format(
      "\nWhat {} the special magic {} for {} mentioned in the provided text?{} The special magic "
      "{} for {} mentioned in the provided text {}",
      one ? "is" : "are all", what, keys, options.suffix, what, keys, one ? "is" : "are");
}

Task niah_task(const TextTasksSection& options, const Niah& niah, Words& words) {
  Task task{.head = options.prefix, .tail = {}, .needles = {}, .answers = {}};
  std::vector<std::string> keys;
  for (int64_t k = 0; k < niah.keys; ++k) {
    keys.push_back(words.take(niah.key));
    for (int64_t v = 0; v < niah.values; ++v) {
      const std::string value = words.take(niah.value);
      task.needles.push_back(needle_of(niah.value, keys.back(), value));
      if (k < niah.queries) task.answers.push_back(value);
    }
  }
  words.draws().shuffle(task.needles);
  keys.resize(static_cast<size_t>(niah.queries));
  ask_for_keys(options, niah, listed(keys), task);
  return task;
}

// One chain, whose assignments stand in their order.
Task chain_task(int64_t hops, int64_t letters, std::string_view suffix, Words& words) {
  Task task;
  const std::string number = words.number_of_chain();
  for (int64_t i = 0; i <= hops; ++i) {
    const std::string source = i == 0 ? number : "VAR " + task.answers.back();
    task.answers.push_back(words.variable(letters));
    task.needles.push_back(fmt::format("VAR {} = {}", task.answers.back(), source));
  }
  task.head =
      "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";
  task.tail = fmt::format(
      "\nQuestion: Find all variables that are assigned the value {} in the text above.{} Answer: "
      "According to the chain(s) of variable assignment in the text above, {} variables are "
      "assigned the value {}, they are:",
      number, suffix, hops + 1, number);
  return task;
}

// The sentences among which needles are hidden, any number of them.
class Haystack {
 public:
  Haystack(const Niah& niah, std::span<const std::string> running_text, Words& words)
      : niah_(niah), running_text_(running_text), words_(words) {
    if (niah.hay == Hay::running_text) first_ = words.draws().below(std::ssize(running_text_));
  }

  std::string_view separator() const { return niah_.hay == Hay::running_text ? " " : "\n"; }
  // Valid until the next call.
  std::string_view sentence(int64_t i) {
    if (niah_.hay == Hay::noise) return kNoise;
    if (niah_.hay == Hay::running_text) {
      return running_text_[static_cast<size_t>((first_ + i) % std::ssize(running_text_))];
    }
    while (std::ssize(needles_) <= i) {
      const std::string key = words_.take(niah_.key);
      needles_.push_back(needle_of(niah_.value, key, words_.take(niah_.value)));
    }
    return needles_[static_cast<size_t>(i)];
  }

 private:
  Niah niah_;
  std::span<const std::string> running_text_;
  Words& words_;
  int64_t first_ = 0;                 // of the running text
  std::vector<std::string> needles_;  // those that nobody asks for
};

// A task whose needles are hidden at places that do not depend on the size of the haystack.
class HiddenTask {
 public:
  HiddenTask(Task task, Haystack haystack, Draws& draws)
      : task_(std::move(task)), haystack_(std::move(haystack)) {
    for (size_t i = 0; i < task_.needles.size(); ++i) depths_.push_back(draws.uniform());
    std::ranges::sort(depths_);
  }

  // The text with a haystack of `size` sentences.
  std::string text(int64_t size) {
    std::string text = task_.head;
    std::string_view separator;
    const auto add = [&](std::string_view line) {
      text.append(separator).append(line);
      separator = haystack_.separator();
    };
    size_t needle = 0;
    for (int64_t i = 0; i <= size; ++i) {
      for (; needle < depths_.size() && place(depths_[needle], size) == i; ++needle) {
        add(task_.needles[needle]);
      }
      if (i < size) add(haystack_.sentence(i));
    }
    return text + task_.tail;
  }
  const std::vector<std::string>& answers() const { return task_.answers; }

 private:
  // The sentence before which a needle stands, or `size` behind the last one.
  static int64_t place(double depth, int64_t size) {
    return std::min(static_cast<int64_t>(depth * static_cast<double>(size + 1)), size);
  }

  Task task_;
  Haystack haystack_;
  std::vector<double> depths_;  // in (0, 1), rising
};

// The text with the greatest haystack that has at most `most` tokens; with none if that has more.
std::string longest_text(const Tokenizer& tokenizer, HiddenTask& task, int64_t most) {
  const auto fits = [&](int64_t size) {
    return std::ssize(tokenizer.encode(task.text(size))) <= most;
  };
  int64_t good = 0, bad = 1;
  while (fits(bad)) good = std::exchange(bad, 2 * bad);
  while (bad - good > 1) {
    const int64_t middle = std::midpoint(good, bad);
    (fits(middle) ? good : bad) = middle;
  }
  return task.text(good);
}

// An example as in RULER: a chain of shorter names, and its answer.
std::string solved_example(const TextTasksSection& options, const Tokenizer& tokenizer,
                           int64_t length, Words& words) {
  const Niah noise{Hay::noise, Word::pair, Word::number};
  HiddenTask example(chain_task(options.hops, kExampleLetters, "", words),
                     Haystack(noise, {}, words), words.draws());
  return fmt::format("{} {}\n\n",
                     longest_text(tokenizer, example, std::min(kExampleTokens, length / 4)),
                     fmt::join(example.answers(), " "));
}

Task chain_task_with_example(const TextTasksSection& options, const Tokenizer& tokenizer,
                             int64_t length, Words& words) {
  const std::string example = solved_example(options, tokenizer, length, words);
  Task task = chain_task(options.hops, kVariableLetters, options.suffix, words);
  task.head = options.prefix + example + task.head;
  return task;
}

std::string in_lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

}  // namespace

bool needs_running_text(TextTask task) {
  return task != TextTask::vt && niah_of({}, task).hay == Hay::running_text;
}

int64_t answer_tokens(TextTask task) { return task == TextTask::vt ? 30 : 128; }

TextSample make_text_sample(const TextTasksSection& options, const Tokenizer& tokenizer,
                            const std::vector<std::string>& running_text, TextTask task,
                            int64_t length, int64_t index) {
  const std::string stream = fmt::format("text task {} {} {}", to_string(task), length, index);
  Words words({options.seed, stream_id(stream)});
  const bool chain = task == TextTask::vt;
  const Niah niah = chain ? Niah{Hay::noise, Word::pair, Word::number} : niah_of(options, task);
  Task parts = chain ? chain_task_with_example(options, tokenizer, length, words)
                     : niah_task(options, niah, words);
  HiddenTask hidden(std::move(parts), Haystack(niah, running_text, words), words.draws());
  const int64_t most = length - answer_tokens(task);
  TextSample sample{tokenizer.encode(longest_text(tokenizer, hidden, most)), hidden.answers()};
  require(std::ssize(sample.prompt) <= most,
          "{} does not fit {} tokens: its prompt has {} without a haystack, and its answer {}; "
          "choose a longer length in tasks.lengths",
          to_string(task), length, sample.prompt.size(), answer_tokens(task));
  return sample;
}

std::vector<bool> find_answers(std::string_view text, const std::vector<std::string>& answers) {
  const std::string lower = in_lower_case(text);
  std::vector<bool> found;
  for (const std::string& answer : answers) {
    found.push_back(lower.find(in_lower_case(answer)) != lower.npos);
  }
  return found;
}

}  // namespace switchyard
