#include "trainer/data/huggingface_tokenizer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/data/tokenizers_process.h"
#include "trainer/data/utf8.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The value of a key, null if there is none.
const json& member(const json& object, const char* key) {
  static const json kNull;
  return object.is_object() && object.contains(key) ? object[key] : kNull;
}

// Merges are the greater part of a tokenizer.json, and only the library needs them.
json parse_file(const fs::path& path, std::string_view bytes) {
  const auto is_needed = [](int depth, json::parse_event_t event, const json& parsed) {
    return depth != 2 || event != json::parse_event_t::key || parsed != "merges";
  };
  try {
    json parsed = json::parse(bytes, is_needed);
    require(parsed.is_object(), "{} is no JSON object", path.string());
    return parsed;
  } catch (const json::parse_error& error) {
    fail("{} is not JSON: byte {} cannot be there", path.string(), error.byte);
  } catch (const json::exception& error) {  // a number that no type holds
    fail("{} cannot be read: {}", path.string(), error.what());
  }
}

// What this program itself reads of a tokenizer.json; the library reads the rest.
class TokenIds {
 public:
  TokenIds(const fs::path& path, const json& file)
      : path_(path), model_(member(file, "model")), added_(member(file, "added_tokens")) {
    const json& vocab = member(model_, "vocab");
    require(vocab.is_object() || vocab.is_array(),
            "{} is not a tokenizer of the library tokenizers: it has no vocabulary (model.vocab)",
            path.string());
    if (vocab.is_array()) see(static_cast<int64_t>(vocab.size()) - 1);  // of a Unigram model
    if (vocab.is_object()) {
      for (const json& id : vocab) see(number(id));
    }
    for (const json& token : added_) see(number(member(token, "id")));
  }

  // One more than the greatest id.
  int64_t size() const { return size_; }

  std::optional<int32_t> find(const std::string& content) const {
    for (const json& token : added_) {
      if (member(token, "content") == content) return number(token["id"]);
    }
    const json& vocab = member(model_, "vocab");
    if (vocab.is_object() && vocab.contains(content)) return number(vocab[content]);
    if (vocab.is_array()) {
      const auto is_it = [&](const json& piece) {
        return piece.is_array() && !piece.empty() && piece[0] == content;
      };
      const auto found = std::ranges::find_if(vocab, is_it);
      if (found != vocab.end()) return static_cast<int32_t>(found - vocab.begin());
    }
    return std::nullopt;
  }

  // The text of a special token, or of any token of a vocabulary by names.
  std::optional<std::string> content_of(int64_t id) const {
    for (const json& token : added_) {
      const json& content = member(token, "content");
      if (member(token, "id") == id && content.is_string()) return content;
    }
    const json& vocab = member(model_, "vocab");
    if (!vocab.is_object()) return std::nullopt;
    for (const auto& [content, value] : vocab.items()) {
      if (value == id) return content;
    }
    return std::nullopt;
  }

  // The token for text outside the vocabulary.
  std::optional<int32_t> unknown() const {
    if (const json& id = member(model_, "unk_id"); id.is_number_integer()) return number(id);
    const json& token = member(model_, "unk_token");
    return token.is_string() ? find(token) : std::nullopt;
  }

  // The first ones, for a message.
  std::vector<std::string> special_tokens() const {
    constexpr size_t kMostNames = 10;
    std::vector<std::string> names;
    for (const json& token : added_) {
      if (member(token, "special") == true && member(token, "content").is_string()) {
        names.push_back(names.size() < kMostNames ? token["content"] : json("..."));
        if (names.size() > kMostNames) break;
      }
    }
    return names;
  }

 private:
  int32_t number(const json& id) const {
    require(id.is_number_integer() && id >= 0 && id < std::numeric_limits<int32_t>::max(),
            "{}: {} is no id of a token", path_.string(), id.dump());
    return id.get<int32_t>();
  }

  void see(int64_t id) { size_ = std::max(size_, id + 1); }

  const fs::path& path_;
  const json &model_, &added_;
  int64_t size_ = 0;
};

json parse_sibling(const TokenizerSection& config, const char* name) {
  const fs::path path = fs::path(config.model).parent_path() / name;
  return fs::exists(path) ? parse_file(path, read_file(path)) : json();
}

// The text of the token that ends a document, where the settings or tokenizer_config.json say it.
std::optional<std::string> named_end(const TokenizerSection& config) {
  if (!config.end_of_document.empty()) return config.end_of_document;
  const json settings = parse_sibling(config, "tokenizer_config.json");
  const json& token = member(settings, "eos_token");
  const json& text = token.is_string() ? token : member(token, "content");
  return text.is_string() ? std::optional<std::string>(text) : std::nullopt;
}

// The text of the token that ends a document; see docs/interoperability.md.
std::string choose_end(const TokenizerSection& config, const TokenIds& ids) {
  if (const auto named = named_end(config)) return *named;
  const json generation = parse_sibling(config, "generation_config.json");
  const json& id = member(generation, "eos_token_id");
  const json& first = id.is_array() && !id.empty() ? id.front() : id;
  if (first.is_number_integer()) {
    if (const auto content = ids.content_of(first)) return *content;
  }
  fail(
      "no file beside {} says which token ends a document (eos_token of tokenizer_config.json, "
      "or eos_token_id of generation_config.json): set data.tokenizer.end_of_document to the text "
      "of one; its special tokens are: {}",
      config.model, fmt::join(ids.special_tokens(), " "));
}

class HuggingFaceTokenizer final : public Tokenizer {
 public:
  explicit HuggingFaceTokenizer(const TokenizerSection& config)
      : path_(config.model), file_(read_file(path_)) {
    const json parsed = parse_file(path_, file_);
    const TokenIds ids(path_, parsed);
    vocab_size_ = ids.size();
    unknown_ = ids.unknown();
    end_ = choose_end(config, ids);
    const auto end = ids.find(end_);
    require(end.has_value(),
            "{} has no token {} to end documents with; set data.tokenizer.end_of_document to one "
            "of its tokens",
            path_.string(), end_);
    end_id_ = *end;
    require(config.vocab_size == 0 || config.vocab_size == vocab_size_,
            "{} has {} tokens, data.tokenizer.vocab_size is {}; take the key out", path_.string(),
            vocab_size_, config.vocab_size);
    hash_ = fmt::format("{:016x}", hash64(fmt::format("{:016x} {}", hash64(file_), end_id_)));
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    const size_t invalid = find_invalid_utf8(text);
    require(invalid == text.npos,
            "the text is not UTF-8 at byte {}, and huggingface tokenizers take no other", invalid);
    return with_process([&](TokenizersProcess& process) { return process.encode(text); });
  }

  Encoding encode_checked(std::string_view text) const override {
    Encoding result = Tokenizer::encode_checked(text);
    if (unknown_) result.unknown = std::ranges::count(result.tokens, *unknown_);
    return result;
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    std::vector<int32_t> of_text;
    for (const int32_t token : tokens) {
      require(token >= 0 && token < vocab_size_, "token {} is outside the vocabulary of {}", token,
              vocab_size_);
      if (token != end_id_) of_text.push_back(token);
    }
    return with_process([&](TokenizersProcess& process) { return process.decode(of_text); });
  }

  TokenizerType type() const override { return TokenizerType::huggingface; }
  int64_t vocab_size() const override { return vocab_size_; }
  int32_t end_of_document() const override { return end_id_; }
  const std::string& end_of_document_text() const { return end_; }
  const std::string& hash() const override { return hash_; }

 private:
  // Each thread that is here at the same time has a process of its own.
  template <class Use>
  std::invoke_result_t<Use, TokenizersProcess&> with_process(const Use& use) const {
    std::unique_ptr<TokenizersProcess> process = take();
    auto result = use(*process);
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(process));
    return result;
  }

  std::unique_ptr<TokenizersProcess> take() const {
    {
      const std::lock_guard lock(mutex_);
      if (cannot_start_) std::rethrow_exception(cannot_start_);
      if (!idle_.empty()) {
        auto process = std::move(idle_.back());
        idle_.pop_back();
        return process;
      }
    }
    try {
      return start();
    } catch (const Error&) {
      const std::lock_guard lock(mutex_);
      cannot_start_ = std::current_exception();
      throw;
    }
  }

  std::unique_ptr<TokenizersProcess> start() const {
    auto process = std::make_unique<TokenizersProcess>(path_.string(), file_, end_);
    require(process->vocab_size() == vocab_size_ && process->end_of_document() == end_id_,
            "{}: Python's package tokenizers takes ids below {} and {} for {}, but the file says "
            "{} and {}: ids of its added tokens cannot be what it says",
            path_.string(), process->vocab_size(), process->end_of_document(), end_, vocab_size_,
            end_id_);
    return process;
  }

  fs::path path_;
  std::string file_;  // its bytes, for the library
  int64_t vocab_size_ = 0;
  std::optional<int32_t> unknown_;
  std::string end_;
  int32_t end_id_ = 0;
  std::string hash_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<TokenizersProcess>> idle_;
  mutable std::exception_ptr cannot_start_;  // which is not tried for each document again
};

}  // namespace

std::unique_ptr<Tokenizer> make_huggingface_tokenizer(const TokenizerSection& config) {
  return std::make_unique<HuggingFaceTokenizer>(config);
}

std::string end_of_document_text(const TokenizerSection& config) {
  // The vocabulary, which takes long to parse, is needed only for an id in generation_config.json.
  if (const auto named = named_end(config)) return *named;
  return HuggingFaceTokenizer(config).end_of_document_text();
}

}  // namespace switchyard
