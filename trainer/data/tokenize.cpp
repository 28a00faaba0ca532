#include "trainer/data/tokenize.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <sstream>
#include <vector>

#include "kernels/check.h"
#include "kernels/crc32c.h"
#include "trainer/data/text_source.h"
#include "trainer/data/token_file.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

void make_parent(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  if (!parent.empty()) fs::create_directories(parent);
}

// What the files are made of: names and sizes of the documents, and how they are shared out.
std::string describe_source(const std::vector<TextFile>& files, double validation_share) {
  std::string listing = fmt::format("{} held out\n", validation_share);
  for (const TextFile& file : files) {
    listing += fmt::format("{} {}\n", file.name, fs::file_size(file.path));
  }
  return fmt::format("{} documents {:08x}", files.size(),
                     crc32c(std::as_bytes(std::span(listing))));
}

// Whether `path` is a token file of this text by this tokenizer.
bool is_current(const std::string& path, const TokenFileInfo& info) {
  if (!fs::exists(path)) return false;
  try {
    const TokenFile file(path);
    return file.info().tokenizer == info.tokenizer && file.info().source == info.source;
  } catch (const Error&) {
    return false;  // damaged: made again
  }
}

// Only what is trained on: held-out text must be new to the tokenizer too.
void train_tokenizer(const DataSection& config, const std::vector<TextFile>& files) {
  std::vector<TextFile> training;
  for (const TextFile& file : files) {
    if (!is_held_out(file, config.validation_share)) training.push_back(file);
  }
  size_t next_file = 0;
  std::istringstream text;
  const auto next_line = [&](std::string* line) {
    while (!std::getline(text, *line)) {
      if (next_file == training.size()) return false;
      text = std::istringstream(read_text_file(training[next_file++].path));
    }
    return true;
  };
  make_parent(config.tokenizer.model);
  train_sentencepiece(next_line, config.tokenizer.vocab_size, config.tokenizer.model);
}

// Documents are read and encoded in parallel, some at a time, and written in order.
void write_documents(const DataSection& config, const std::vector<TextFile>& files,
                     const Tokenizer& tokenizer, TokenFileWriter& train,
                     TokenFileWriter* validation, TokenizeSummary& summary,
                     const std::function<void(const std::string&)>& progress) {
  constexpr size_t kAtATime = 256;
  for (size_t begin = 0; begin < files.size(); begin += kAtATime) {
    const size_t count = std::min(kAtATime, files.size() - begin);
    std::vector<std::vector<int32_t>> encoded(count);
    std::vector<int64_t> bytes(count, 0);
    std::vector<std::exception_ptr> errors(count);
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < count; ++i) {
      try {
        const std::string text = read_text_file(files[begin + i].path);
        encoded[i] = tokenizer.encode(text);
        bytes[i] = static_cast<int64_t>(text.size());
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
    for (size_t i = 0; i < count; ++i) {
      if (errors[i]) std::rethrow_exception(errors[i]);
      const bool held_out = validation && is_held_out(files[begin + i], config.validation_share);
      (held_out ? *validation : train).append(encoded[i]);
      summary.bytes += bytes[i];
    }
    progress(fmt::format("{} of {} documents", begin + count, files.size()));
  }
}

}  // namespace

TokenizeSummary tokenize(const DataSection& config,
                         const std::function<void(const std::string&)>& progress) {
  require(!config.train.empty(), "data.train is missing: the token file to write");
  const std::vector<TextFile> files = find_text(config.text);
  TokenizeSummary summary;
  if (config.tokenizer.type == TokenizerType::sentencepiece &&
      !fs::exists(config.tokenizer.model)) {
    require(!config.tokenizer.model.empty(),
            "data.tokenizer.model is missing: where to keep the sentencepiece model");
    require(config.tokenizer.vocab_size > 0,
            "data.tokenizer.vocab_size is missing: how many pieces to train");
    progress(fmt::format("training a tokenizer of {} pieces", config.tokenizer.vocab_size));
    train_tokenizer(config, files);
    summary.trained_tokenizer = true;
  }
  const std::unique_ptr<Tokenizer> tokenizer = make_tokenizer(config.tokenizer);
  const TokenFileInfo info{.vocab_size = tokenizer->vocab_size(),
                           .end_of_document = tokenizer->end_of_document(),
                           .tokenizer = tokenizer->fingerprint(),
                           .source = describe_source(files, config.validation_share)};
  const bool validates = !config.validation.empty();
  if (is_current(config.train, info) && (!validates || is_current(config.validation, info))) {
    summary.up_to_date = true;
    return summary;
  }

  make_parent(config.train);
  TokenFileWriter train(config.train, info);
  std::optional<TokenFileWriter> validation;
  if (validates) {
    make_parent(config.validation);
    validation.emplace(config.validation, info);
  }
  write_documents(config, files, *tokenizer, train, validation ? &*validation : nullptr, summary,
                  progress);
  train.finish();
  summary.documents = train.num_documents();
  summary.tokens = train.num_tokens();
  if (validation) {
    validation->finish();
    summary.validation_documents = validation->num_documents();
    summary.validation_tokens = validation->num_tokens();
  }
  return summary;
}

}  // namespace switchyard
