#include "trainer/data/tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <fstream>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "kernels/check.h"
#include "kernels/crc32c.h"

namespace switchyard {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }
  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 0 && id < kBytes) text += static_cast<char>(id);
    }
    return text;
  }
  int64_t vocab_size() const override { return kBytes + 1; }
  int32_t end_of_document() const override { return kBytes; }
  std::string fingerprint() const override { return "byte"; }

 private:
  static constexpr int32_t kBytes = 256;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), "data.tokenizer.model: {} cannot be read; `switchyard tokenize` trains it",
            path.string());
    std::stringstream contents;
    contents << file.rdbuf();
    const std::string bytes = contents.str();
    const auto status = processor_.LoadFromSerializedProto(bytes);
    require(status.ok(), "data.tokenizer.model: {} is not an intact sentencepiece model: {}",
            path.string(), status.ToString());
    fingerprint_ = fmt::format("sentencepiece {:08x}", crc32c(std::as_bytes(std::span(bytes))));
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode(std::string(text), &ids);
    require(status.ok(), "sentencepiece cannot encode the text: {}", status.ToString());
    return {ids.begin(), ids.end()};
  }
  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    const auto status = processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
    require(status.ok(), "sentencepiece cannot decode: {}", status.ToString());
    return text;
  }
  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  int32_t end_of_document() const override { return processor_.eos_id(); }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  sentencepiece::SentencePieceProcessor processor_;
  std::string fingerprint_;
};

class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::function<bool(std::string*)>& next) : next_(next) { Next(); }

  bool done() const override { return done_; }
  void Next() override { done_ = !next_(&line_); }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::function<bool(std::string*)>& next_;
  std::string line_;
  bool done_ = false;
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerSection& config) {
  if (config.type == TokenizerType::byte) return std::make_unique<ByteTokenizer>();
  return std::make_unique<SentencePieceTokenizer>(config.model);
}

void train_sentencepiece(const std::function<bool(std::string*)>& next_line, int64_t vocab_size,
                         const std::filesystem::path& model) {
  Lines lines(next_line);
  // Nothing is normalised and no space is added, so that decoding gives back the very text; runs of
  // spaces may become one piece, which indented text is full of.
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocab_size)},
      {"byte_fallback", "true"},
      {"character_coverage", "0.9999"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"user_defined_symbols", "\n"},
      {"split_digits", "true"},
      {"minloglevel", "2"},
  };
  std::string serialized;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &lines, &serialized);
  require(status.ok(),
          "sentencepiece cannot train {} pieces on this text ({}); give more text, or a smaller "
          "data.tokenizer.vocab_size",
          vocab_size, status.ToString());
  const std::filesystem::path partial = model.string() + ".tmp";
  std::ofstream file(partial, std::ios::binary);
  file << serialized;
  file.close();
  require(!file.fail(), "{} cannot be written", partial.string());
  std::filesystem::rename(partial, model);
}

}  // namespace switchyard
