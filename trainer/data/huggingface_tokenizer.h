#pragma once

#include <memory>
#include <string>

#include "trainer/data/tokenizer.h"

namespace switchyard {

// Reads the tokenizer.json `config.model`, and, for the token that ends a document, the files
// beside it. Python is started when the first text is encoded or decoded. Throws Error with the
// path if a file is missing, is no JSON or has no vocabulary, or if nothing says how documents end.
std::unique_ptr<Tokenizer> make_huggingface_tokenizer(const TokenizerSection& config);

// The text of the token that ends a document, for a program that reads the same files.
std::string end_of_document_text(const TokenizerSection& config);

}  // namespace switchyard
