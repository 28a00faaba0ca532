#include "trainer/interop/tokenizer_files.h"

#include <fmt/format.h>

#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/runtime/check.h"
#include "trainer/data/huggingface_tokenizer.h"
#include "trainer/data/recall_tokenizer.h"
#include "trainer/data/sentencepiece_model.h"
#include "trainer/data/tokenizer.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/folders.h"
#include "trainer/interop/sentencepiece_json.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kTokenizerJson[] = "tokenizer.json", kSentencePieceModel[] = "tokenizer.model";
constexpr char kGenerationConfig[] = "generation_config.json";
constexpr char kEndOfDocument[] = "<|endoftext|>";  // of byte tokens

// Byte-level models write each byte as a character that can be seen: itself, or one from U+0100 on
// (bytes_to_unicode of GPT-2).
std::array<std::string, 256> byte_characters() {
  std::array<std::string, 256> characters;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    const int character = visible ? byte : next++;
    std::string& utf8 = characters[static_cast<size_t>(byte)];
    if (character < 0x80) {
      utf8 = static_cast<char>(character);
    } else {
      utf8 = {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 63))};
    }
  }
  return characters;
}

// The end-of-document token is no added token, so text that looks like it stays text.
json byte_tokenizer() {
  json vocab;
  const auto characters = byte_characters();
  for (size_t byte = 0; byte < characters.size(); ++byte) vocab[characters[byte]] = byte;
  vocab[kEndOfDocument] = characters.size();
  const json bytes = {{"type", "ByteLevel"},
                      {"add_prefix_space", false},
                      {"trim_offsets", true},
                      {"use_regex", false}};
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", bytes},
          {"post_processor", nullptr},
          {"decoder", bytes},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
}

json recall_tokenizer() {
  json vocab;
  for (int32_t id = 0; id < RecallVocabulary::kSize; ++id) vocab[recall_word(id)] = id;
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
          {"post_processor", nullptr},
          {"decoder", nullptr},
          {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", "<unk>"}}}};
}

json settings(const std::string& end_of_document) {
  return {{"tokenizer_class", "PreTrainedTokenizerFast"},
          {"eos_token", end_of_document},
          {"add_bos_token", false},
          {"add_eos_token", false},
          {"clean_up_tokenization_spaces", false},
          // Text that looks like a special token is text.
          {"split_special_tokens", true}};
}

std::string to_text(const json& value) { return value.dump(2, ' ', /*ensure_ascii=*/false) + "\n"; }

void write_json(const fs::path& path, const json& value) { write_durably(path, to_text(value)); }

// Whether a tokenizer.json is the equal of a SentencePiece model.
bool is_of_sentencepiece(const std::string& text, const fs::path& model) {
  try {
    const std::string bytes = read_file(model);
    return to_text(sentencepiece_json(parse_sentencepiece_model(bytes))) == text;
  } catch (const Error&) {
    return false;  // damaged, or with options that have no equal
  }
}

void write_sentencepiece(const TokenizerSection& config, const fs::path& folder) {
  const auto tokenizer = make_tokenizer(config);  // which checks the file
  const std::string bytes = read_file(config.model);
  const SentencePieceModel model = parse_sentencepiece_model(bytes);
  const auto end = static_cast<size_t>(tokenizer->end_of_document());
  json of_config = settings(model.pieces.at(end).text);
  of_config["add_prefix_space"] = model.add_dummy_prefix;
  json converted;
  try {
    converted = sentencepiece_json(model);
  } catch (const Error& error) {
    fail("{} cannot become a tokenizer.json: {}", config.model, error.what());
  }
  write_json(folder / kTokenizerJson, converted);
  write_json(folder / "tokenizer_config.json", of_config);
  write_durably(folder / kSentencePieceModel, bytes);
}

void copy_huggingface(const TokenizerSection& config, const fs::path& folder) {
  const std::string end = end_of_document_text(config);
  write_durably(folder / kTokenizerJson, read_file(config.model));
  const fs::path source = fs::path(config.model).parent_path();
  for (const char* name : {"special_tokens_map.json", "chat_template.jinja"}) {
    if (fs::exists(source / name)) write_durably(folder / name, read_file(source / name));
  }
  const char* name = "tokenizer_config.json";
  const std::string bytes = fs::exists(source / name) ? read_file(source / name) : "";
  json of_config = bytes.empty() ? json{{"tokenizer_class", "PreTrainedTokenizerFast"},
                                        {"clean_up_tokenization_spaces", false}}
                                 : json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  require(of_config.is_object(), "{} is no JSON object", (source / name).string());
  const json token = of_config.value("eos_token", json());
  if (token == end || (token.is_object() && token.value("content", "") == end)) {
    return write_durably(folder / name, bytes);
  }
  of_config["eos_token"] = end;
  write_json(folder / name, of_config);
}

}  // namespace

void write_tokenizer_files(const TokenizerSection& config, const fs::path& folder) {
  switch (config.type) {
    case TokenizerType::sentencepiece:
      return write_sentencepiece(config, folder);
    case TokenizerType::huggingface:
      return copy_huggingface(config, folder);
    case TokenizerType::byte:
      write_json(folder / kTokenizerJson, byte_tokenizer());
      return write_json(folder / "tokenizer_config.json", settings(kEndOfDocument));
    case TokenizerType::recall:
      write_json(folder / kTokenizerJson, recall_tokenizer());
      return write_json(folder / "tokenizer_config.json",
                        settings(recall_word(RecallVocabulary::kEndOfDocument)));
  }
}

std::optional<TokenizerSection> recognize_tokenizer(const fs::path& folder) {
  const fs::path of_library = folder / kTokenizerJson, model = folder / kSentencePieceModel;
  TokenizerSection section;
  if (!fs::exists(of_library)) {
    if (!fs::exists(model)) return std::nullopt;
    section.type = TokenizerType::sentencepiece;
    section.model = model.string();
    return section;
  }
  const std::string text = read_file(of_library);
  if (text == to_text(byte_tokenizer())) return section;
  if (text == to_text(recall_tokenizer())) {
    section.type = TokenizerType::recall;
  } else if (fs::exists(model) && is_of_sentencepiece(text, model)) {
    section.type = TokenizerType::sentencepiece;
    section.model = model.string();
  } else {
    section.type = TokenizerType::huggingface;
    section.model = of_library.string();
  }
  return section;
}

void copy_tokenizer_files(const fs::path& from, const fs::path& to,
                          std::optional<int64_t> end_of_document) {
  make_folder(to);
  for (const char* name : {kTokenizerJson, kSentencePieceModel, "tokenizer_config.json",
                           "special_tokens_map.json", "chat_template.jinja", kGenerationConfig}) {
    if (fs::exists(from / name)) write_durably(to / name, read_file(from / name));
  }
  if (end_of_document && !fs::exists(to / kGenerationConfig)) {
    write_json(to / kGenerationConfig, {{"eos_token_id", *end_of_document}});
  }
}

}  // namespace switchyard
