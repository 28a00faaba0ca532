#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/run_config.h"

namespace switchyard {

// The tokens of a text, and how far they are from it.
struct Encoding {
  std::vector<int32_t> tokens;
  int64_t unknown = 0;  // tokens that stand for text outside the vocabulary
  std::optional<size_t>
      changed_at;  // the first byte of the text that decode(tokens) does not restore
};

// Text to token ids and back. Const functions may be called from several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Adds no end-of-document token; text that looks like one is ordinary text, but for huggingface,
  // where the file decides that.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Skips end-of-document tokens. Throws for ids outside the vocabulary. A character that is cut
  // off at either end is decoded to its bytes (byte) or to U+FFFD (sentencepiece, huggingface).
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;

  virtual TokenizerType type() const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual int32_t end_of_document() const = 0;
  // 16 hexadecimal digits; the same for tokenizers that give the same ids.
  virtual const std::string& hash() const = 0;

  // As encode, with a check that decoding restores the text.
  virtual Encoding encode_checked(std::string_view text) const;
};

// byte: one token per byte, 256 ends a document. recall: see recall_tokenizer.h. huggingface: see
// huggingface_tokenizer.h. sentencepiece:
// reads `config.model`; throws if it is missing, damaged, has no end-of-sentence piece, or does not
// have `config.vocab_size` pieces (0: any number).
std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerSection& config);

// The next line of text to learn from, of any length; none at the end.
using LineSource = std::function<std::optional<std::string>()>;

// Learns a BPE of `vocab_size` pieces (Sennrich et al. 2016, by the SentencePiece library) and
// writes it to `model`, whole or not at all. Unseen characters and line ends are encoded as bytes,
// white space is kept, and each digit is a piece: decoding restores every UTF-8 text (but for
// U+2581, SentencePiece's own mark for a space). The same lines give the same model.
// Throws with the library's reason, such as too little text for so many pieces.
void train_sentencepiece(const LineSource& next_line, int64_t vocab_size,
                         const std::filesystem::path& model);

}  // namespace switchyard
