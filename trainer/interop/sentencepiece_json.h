#pragma once

#include <nlohmann/json.hpp>

#include "trainer/data/sentencepiece_model.h"

namespace switchyard {

// The contents of a tokenizer.json that gives the ids of a SentencePiece model, made as
// transformers' SpmConverter.build_tokenizer_from_spm_proto does; text that looks like a control
// piece stays text. Throws Error where Hugging Face's library has no equal: models other than BPE,
// unused pieces, spaces as suffixes or unescaped, and a table of characters for decoding.
nlohmann::json sentencepiece_json(const SentencePieceModel& model);

}  // namespace switchyard
