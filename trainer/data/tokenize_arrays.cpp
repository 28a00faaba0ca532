#include "trainer/data/tokenize_arrays.h"

#include <fmt/ostream.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/data/text_notes.h"
#include "trainer/data/token_array.h"
#include "trainer/data/token_file.h"
#include "trainer/data/token_output.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlockIds = 1 << 16;

bool is_token_array(const fs::path& path) {
  require(path.extension() != ".idx" || fs::is_directory(path),
          "data.text: {} is the index of token ids; name the .bin beside it", path.string());
  return path.extension() == ".bin" && !fs::is_directory(path);
}

struct ArrayDocument {
  TokenArray& array;
  std::vector<TokenArray::Range> ranges;
  std::string place;

  int64_t size() const {
    int64_t ids = 0;
    for (const auto& [begin, end] : ranges) ids += end - begin;
    return ids;
  }
};

// Calls `use` with the ids [first, last) of the document, in blocks.
void read_ids(const ArrayDocument& document, int64_t first, int64_t last,
              const std::function<void(std::span<const int32_t>)>& use) {
  std::vector<int32_t> ids;
  int64_t before = 0;  // ids of the ranges before
  for (const auto& [begin, end] : document.ranges) {
    const int64_t from = begin + std::clamp<int64_t>(first - before, 0, end - begin);
    const int64_t to = begin + std::clamp<int64_t>(last - before, 0, end - begin);
    for (int64_t at = from; at < to; at += std::ssize(ids)) {
      ids.resize(static_cast<size_t>(std::min(kBlockIds, to - at)));
      document.array.read(at, ids);
      use(ids);
    }
    before += end - begin;
  }
}

class ArrayCorpus {
 public:
  ArrayCorpus(const DataSection& config, const Tokenizer& tokenizer)
      : config_(config), tokenizer_(tokenizer) {}

  // Calls `use` with each document that is not empty.
  void each(const std::function<void(const ArrayDocument&)>& use, TextNotes& notes) const {
    for (const std::string& path : config_.text) {
      TokenArray array(path, config_.array_dtype, tokenizer_.vocab_size(),
                       tokenizer_.end_of_document());
      for (int64_t number = 0; auto ranges = array.next_document(); ++number) {
        const ArrayDocument document{array, std::move(*ranges),
                                     fmt::format("{} (document {})", path, number)};
        if (document.size() > 0) {
          use(document);
        } else {
          notes.empty.add(document.place);
        }
      }
    }
  }

 private:
  const DataSection& config_;
  const Tokenizer& tokenizer_;
};

// A hash of the ids, which decides as that of a text does whether they are held out.
uint64_t hash_of(const ArrayDocument& document) {
  uint64_t hash = 0;
  read_ids(document, 0, document.size(), [&](std::span<const int32_t> ids) {
    const std::string_view bytes(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
    hash = random_bits({hash, hash64(bytes)}, ids.size());
  });
  return hash;
}

struct Survey {
  double share = 0.0;
  bool by_document = true;
  int64_t documents = 0, ids = 0;
  uint64_t hash = 0;
  TextNotes notes = {};

  bool is_held_out(uint64_t document_hash) const {
    return random_uniform({document_hash, stream_id("held out")}, 0) < share;
  }
};

Survey survey(const ArrayCorpus& corpus, double share) {
  Survey result{.share = share};
  double held_out = 0.0;
  corpus.each(
      [&](const ArrayDocument& document) {
        const uint64_t hash = hash_of(document);
        const int64_t size = document.size();
        ++result.documents;
        result.ids += size;
        if (result.is_held_out(hash)) held_out += static_cast<double>(size);
        result.hash = random_bits({result.hash, hash}, static_cast<uint64_t>(size));
      },
      result.notes);
  require(result.documents > 0, "all files of data.text are empty");
  const double wanted = share * static_cast<double>(result.ids);
  result.by_document = held_out >= wanted / 2 && held_out <= wanted * 2;
  result.hash =
      random_bits({result.hash, hash64(fmt::format("{} {}", share, result.by_document))}, 0);
  return result;
}

void append(const ArrayDocument& document, int64_t first, int64_t last, TokenFileWriter* writer) {
  if (!writer || first == last) return;
  read_ids(document, first, last,
           [&](std::span<const int32_t> ids) { writer->append_tokens(ids); });
  writer->end_document();
}

void check(const DataSection& config) {
  require(!config.train.empty(), "data.train must name the token file to write");
  require(config.validation.empty() || config.validation_share > 0.0,
          "data.validation names a file, but data.validation_share is 0; set a share above 0");
  require(config.record == RecordForm::text,
          "data.record={} reads .jsonl files, and data.text names token arrays",
          to_string(config.record));
  std::vector<NamedFile> inputs;
  for (const std::string& path : config.text) {
    require(fs::exists(path), "data.text: {} does not exist", path);
    inputs.push_back({"data.text", path});
    if (fs::exists(TokenArray::index_of(path))) {
      inputs.push_back({"data.text", TokenArray::index_of(path)});
    }
  }
  require_token_outputs(config, {}, inputs);
}

}  // namespace

bool names_token_arrays(const DataSection& config) {
  const auto count = std::ranges::count_if(config.text, is_token_array);
  require(count == 0 || count == std::ssize(config.text),
          "data.text names both token arrays (.bin) and text; make a token file of each, and list "
          "them in data.train to train on both");
  return count > 0;
}

TokenizeReport tokenize_arrays(const DataSection& config, std::ostream& log) {
  check(config);
  const auto tokenizer = make_tokenizer(config.tokenizer);
  const ArrayCorpus corpus(config, *tokenizer);
  const Survey found = survey(corpus, config.validation.empty() ? 0.0 : config.validation_share);
  fmt::print(log, "{} documents in {} files, {} ids\n", found.documents, config.text.size(),
             found.ids);
  const TokenFileInfo info{.vocab_size = tokenizer->vocab_size(),
                           .end_of_document = tokenizer->end_of_document(),
                           .tokenizer = std::string(to_string(tokenizer->type())),
                           .tokenizer_hash = tokenizer->hash(),
                           .source = fmt::format("{}", fmt::join(config.text, ", ")),
                           .source_hash = fmt::format("{:016x}", found.hash)};
  const std::string train_path = output_path(config.train, "data.train");
  const std::string validation_path = output_path(config.validation, "data.validation");
  const auto train = open_token_output(train_path, info, log);
  const auto validation = open_token_output(validation_path, info, log);
  if (train || validation) {
    TextNotes counted_before;
    corpus.each(
        [&](const ArrayDocument& document) {
          const int64_t size = document.size();
          int64_t held_out = found.is_held_out(hash_of(document)) ? size : 0;
          if (!found.by_document) {
            held_out = static_cast<int64_t>(found.share * static_cast<double>(size));
          }
          append(document, 0, size - held_out, train.get());
          append(document, size - held_out, size, validation.get());
        },
        counted_before);
    require_documents(train.get(), validation.get());
  }
  TokenizeReport report{.documents = found.documents};
  report.train_tokens = finish_token_output(train.get(), train_path, log);
  report.validation_tokens = finish_token_output(validation.get(), validation_path, log);
  for (const std::string& line : found.notes.lines()) fmt::print(log, "{}\n", line);
  return report;
}

}  // namespace switchyard
