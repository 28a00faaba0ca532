#include "trainer/data/tokenizer.h"

#include <fmt/ranges.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <regex>
#include <span>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/data/huggingface_tokenizer.h"
#include "trainer/data/recall_tokenizer.h"
#include "trainer/data/sentencepiece_model.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

std::string hash_of(std::string_view bytes) { return fmt::format("{:016x}", hash64(bytes)); }

// The first byte at which two texts differ; none if they are the same.
std::optional<size_t> first_difference(std::string_view a, std::string_view b) {
  const auto [end, ignored] = std::ranges::mismatch(a, b);
  const auto same = static_cast<size_t>(end - a.begin());
  return same == a.size() && same == b.size() ? std::nullopt : std::optional(same);
}

class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens(text.size());
    std::transform(text.begin(), text.end(), tokens.begin(),
                   [](char c) { return static_cast<int32_t>(static_cast<unsigned char>(c)); });
    return tokens;
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    text.reserve(tokens.size());
    for (const int32_t token : tokens) {
      require(token >= 0 && token < kVocabSize, "token {} is outside the vocabulary of {}", token,
              kVocabSize);
      if (token != kEndOfDocument) text.push_back(static_cast<char>(token));
    }
    return text;
  }

  TokenizerType type() const override { return TokenizerType::byte; }
  int64_t vocab_size() const override { return kVocabSize; }
  int32_t end_of_document() const override { return kEndOfDocument; }
  const std::string& hash() const override { return hash_; }

 private:
  static constexpr int32_t kEndOfDocument = 256;
  static constexpr int64_t kVocabSize = 257;

  std::string hash_ = hash_of("byte");
};

// Whether a text can be cut at `position` without a change of its tokens, if the model passes
// `allows_cuts`. A text is never cut between a space and a character that may be, or may become,
// SentencePiece's mark for a space.
bool is_cut(std::string_view text, size_t position) {
  const char before = text[position - 1];
  return before == '\n' || (text[position] == ' ' && before > ' ' && before <= '~');
}

// True if no piece reaches over a cut, and the model neither adds nor removes anything at the ends
// of a text. Models by `train_sentencepiece` allow cuts.
bool allows_cuts(const sentencepiece::SentencePieceProcessor& processor) {
  constexpr std::string_view kSpace = "\u2581";
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    std::string_view piece = processor.IdToPiece(id);
    while (piece.starts_with(kSpace)) piece.remove_prefix(kSpace.size());
    if (piece.find(kSpace) != piece.npos || piece.find('\n') != piece.npos) return false;
  }
  std::vector<std::string> pieces;
  if (!processor.Encode(" \n  \n ", &pieces).ok()) return false;
  return fmt::format("{}", fmt::join(pieces, "")) == "\u2581<0x0A>\u2581\u2581<0x0A>\u2581";
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const TokenizerSection& config) {
    const std::string& path = config.model;
    const std::string bytes = read_file(path);
    try {
      load(bytes);
    } catch (const std::exception& error) {
      fail("{} is not a SentencePiece model, or damaged: {}", path, error.what());
    }
    require(processor_.eos_id() >= 0, "{} has no end-of-sentence piece to end documents with",
            path);
    require(config.vocab_size == 0 || config.vocab_size == vocab_size(),
            "{} has {} pieces, data.tokenizer.vocab_size is {}; remove the file to train it anew",
            path, vocab_size(), config.vocab_size);
    hash_ = hash_of(bytes);
    allows_cuts_ = allows_cuts(processor_);
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> tokens;
    encode_blocks(text, [&](std::string_view, const std::vector<int32_t>& block_tokens) {
      tokens.insert(tokens.end(), block_tokens.begin(), block_tokens.end());
    });
    return tokens;
  }

  // Decoding takes as much memory per byte as encoding, so it is checked block by block.
  Encoding encode_checked(std::string_view text) const override {
    Encoding result;
    size_t begin = 0;  // of the block
    encode_blocks(text, [&](std::string_view block, const std::vector<int32_t>& block_tokens) {
      result.tokens.insert(result.tokens.end(), block_tokens.begin(), block_tokens.end());
      result.unknown += std::ranges::count(block_tokens, processor_.unk_id());
      if (!result.changed_at) {
        const auto difference = first_difference(block, decode(block_tokens));
        if (difference) result.changed_at = begin + *difference;
      }
      begin += block.size();
    });
    return result;
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    for (const int32_t token : tokens) {
      require(token >= 0 && token < vocab_size(), "token {} is outside the vocabulary of {}", token,
              vocab_size());
    }
    std::string text;
    const auto status = processor_.Decode(std::vector<int>(tokens.begin(), tokens.end()), &text);
    require(status.ok(), "SentencePiece cannot decode: {}", status.ToString());
    return text;
  }

  TokenizerType type() const override { return TokenizerType::sentencepiece; }
  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  int32_t end_of_document() const override { return processor_.eos_id(); }
  const std::string& hash() const override { return hash_; }

 private:
  // Parsing checks the tables that the library follows unchecked. The library also throws, where it
  // cannot build its trie of pieces.
  void load(const std::string& bytes) {
    parse_sentencepiece_model(bytes);
    const auto status = processor_.LoadFromSerializedProto(bytes);
    require(status.ok(), "{}", status.ToString());
    require(processor_.GetPieceSize() > 0, "it has no pieces");
  }

  // SentencePiece takes about 90 bytes per byte of text, and time that grows faster than the text.
  static constexpr size_t kBlockBytes = 16384;

  // Calls take(block, its tokens) for one part of the text after the other.
  template <class Take>
  void encode_blocks(std::string_view text, const Take& take) const {
    std::vector<int32_t> tokens;
    while (!text.empty()) {
      const std::string_view block = text.substr(0, block_size(text));
      const auto status = processor_.Encode({block.data(), block.size()}, &tokens);
      require(status.ok(), "SentencePiece cannot encode a text of {} bytes: {}", block.size(),
              status.ToString());
      take(block, tokens);
      text.remove_prefix(block.size());
    }
  }

  size_t block_size(std::string_view text) const {
    if (!allows_cuts_) return text.size();
    size_t end = std::min(text.size(), kBlockBytes);
    while (end < text.size() && !is_cut(text, end)) ++end;
    return end;
  }

  sentencepiece::SentencePieceProcessor processor_;
  std::string hash_;
  bool allows_cuts_ = false;
};

// Passes lines to the trainer. The trainer skips sentences longer than its limit, so they are cut.
class LineIterator final : public sentencepiece::SentenceIterator {
 public:
  static constexpr size_t kMaxBytes = 4096;

  explicit LineIterator(const LineSource& next_line) : next_line_(next_line) { Next(); }

  bool done() const override { return done_; }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    // Exceptions must not pass through the library, which is not written for them.
    try {
      while (begin_ >= line_.size()) {
        auto line = next_line_();
        if (!line) {
          done_ = true;
          return;
        }
        line_ = std::move(*line);
        begin_ = 0;
      }
      take_sentence();
    } catch (...) {
      error_ = std::current_exception();
      done_ = true;
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void take_sentence() {
    size_t end = std::min(line_.size(), begin_ + kMaxBytes);
    const auto inside_character = [&] { return (line_[end] & 0xC0) == 0x80; };
    while (end < line_.size() && end > begin_ + kMaxBytes / 2 && inside_character()) --end;
    sentence_ = line_.substr(begin_, end - begin_);
    begin_ = end;
  }

  const LineSource& next_line_;
  std::string line_, sentence_;
  size_t begin_ = 0;  // of the rest of line_
  bool done_ = false;
  std::exception_ptr error_;
};

}  // namespace

Encoding Tokenizer::encode_checked(std::string_view text) const {
  Encoding result{.tokens = encode(text), .unknown = 0, .changed_at = {}};
  result.changed_at = first_difference(text, decode(result.tokens));
  return result;
}

std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerSection& config) {
  const bool huggingface = config.type == TokenizerType::huggingface;
  require(huggingface || config.end_of_document.empty(),
          "data.tokenizer.end_of_document has no effect without data.tokenizer.type: huggingface; "
          "take it out");
  if (config.type == TokenizerType::byte) return std::make_unique<ByteTokenizer>();
  if (config.type == TokenizerType::recall) return make_recall_tokenizer();
  require(!config.model.empty(), "data.tokenizer.model must name a {}",
          huggingface ? "tokenizer.json" : "SentencePiece model");
  if (huggingface) return make_huggingface_tokenizer(config);
  return std::make_unique<SentencePieceTokenizer>(config);
}

namespace {

// The reason within a message of the library, which names its own source files and options.
std::string explain_training_error(const std::string& message) {
  std::smatch match;
  if (std::regex_search(message, match, std::regex("too high.*<= ([0-9]+)"))) {
    return fmt::format(
        "this text has too few different pieces; "
        "data.tokenizer.vocab_size may be at most {}",
        match[1].str());
  }
  if (std::regex_search(message, match, std::regex("required_chars. [0-9]+ vs ([0-9]+)"))) {
    return fmt::format(
        "the characters of this text alone need more; "
        "data.tokenizer.vocab_size must be at least {}",
        match[1].str());
  }
  if (message.find("sentences_.empty()") != message.npos) return "there is no text to learn from";
  return message;
}

}  // namespace

void train_sentencepiece(const LineSource& next_line, int64_t vocab_size,
                         const std::filesystem::path& model) {
  UnfinishedFile file(model);  // so that no two processes train it at once
  LineIterator lines(next_line);
  std::string serialized;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {{"model_type", "bpe"},
       {"vocab_size", fmt::format("{}", vocab_size)},
       {"byte_fallback", "true"},
       {"character_coverage", "0.9995"},
       {"split_digits", "true"},
       {"allow_whitespace_only_pieces", "true"},
       {"normalization_rule_name", "identity"},
       {"remove_extra_whitespaces", "false"},
       {"add_dummy_prefix", "false"},
       {"unk_id", "0"},
       {"eos_id", "1"},
       {"bos_id", "-1"},
       {"pad_id", "-1"},
       {"max_sentence_length", fmt::format("{}", LineIterator::kMaxBytes)},
       // The trainer samples a reservoir with its own seed; this bounds memory on large corpora.
       {"input_sentence_size", "2000000"},
       {"shuffle_input_sentence", "true"},
       {"num_threads", "1"},
       {"minloglevel", "2"}},
      &lines, &serialized);
  lines.rethrow();
  require(status.ok(), "SentencePiece cannot train {} pieces for {}: {}", vocab_size,
          model.string(), explain_training_error(status.ToString()));
  OutputFile out(file.path());
  out.write(std::as_bytes(std::span(serialized)));
  out.close();
  file.publish();
}

}  // namespace switchyard
