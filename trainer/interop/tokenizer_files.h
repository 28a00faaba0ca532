#pragma once

#include <filesystem>
#include <optional>

#include "trainer/config/run_config.h"

namespace switchyard {

// Writes tokenizer.json and tokenizer_config.json into a folder that exists, with which
// AutoTokenizer of transformers gives the ids of this tokenizer. Of a SentencePiece model there is
// a copy, too, as tokenizer.model, which converters of other programs read. The files of a
// huggingface tokenizer are copied. Throws Error for a SentencePiece model with an option that
// Hugging Face's library cannot follow (sentencepiece_json.h).
void write_tokenizer_files(const TokenizerSection& config, const std::filesystem::path& folder);

// The tokenizer of a folder's files: the byte, recall or SentencePiece tokenizer for which
// write_tokenizer_files writes the same tokenizer.json, or else a huggingface one. A folder with
// tokenizer.model alone has a SentencePiece tokenizer; one with neither file has none.
std::optional<TokenizerSection> recognize_tokenizer(const std::filesystem::path& folder);

// Copies the files that decide the tokenizer of a folder into another, which is made. Where no file
// says which token ends a document, `end_of_document` does, if it is an id.
void copy_tokenizer_files(const std::filesystem::path& from, const std::filesystem::path& to,
                          std::optional<int64_t> end_of_document);

}  // namespace switchyard
