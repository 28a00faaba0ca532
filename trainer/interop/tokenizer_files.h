#pragma once

#include <filesystem>

#include "trainer/config/run_config.h"

namespace switchyard {

// Writes tokenizer.json and tokenizer_config.json into a folder that exists, with which
// AutoTokenizer of transformers gives the ids of this tokenizer. Of a SentencePiece model there is
// a copy, too, as tokenizer.model, which converters of other programs read. The files of a
// huggingface tokenizer are copied. Throws Error for a SentencePiece model with an option that
// Hugging Face's library cannot follow (sentencepiece_json.h).
void write_tokenizer_files(const TokenizerSection& config, const std::filesystem::path& folder);

}  // namespace switchyard
