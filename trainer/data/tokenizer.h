#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/run_config.h"

namespace switchyard {

// Text to token ids and back. `decode(encode(text)) == text`.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
  virtual int64_t vocab_size() const = 0;
  // Stands behind every document.
  virtual int32_t end_of_document() const = 0;
  // Tells tokenizers apart: "byte", or "sentencepiece" and a checksum of the model.
  virtual std::string fingerprint() const = 0;
};

// Throws Error where the sentencepiece model is missing or damaged.
std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerSection& config);

// Trains a BPE model with byte fall-back (Sennrich et al. 2016, as the sentencepiece library does
// it) and writes it. `next_line` fills a line and returns false at the end; the lines need not fit
// into memory at once.
void train_sentencepiece(const std::function<bool(std::string*)>& next_line, int64_t vocab_size,
                         const std::filesystem::path& model);

}  // namespace switchyard
