#include "trainer/data/tokenize.h"

#include <fmt/ostream.h>
#include <fmt/ranges.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/data/corpus.h"
#include "trainer/data/encode_document.h"
#include "trainer/data/token_file.h"
#include "trainer/data/token_output.h"
#include "trainer/data/tokenize_arrays.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {
namespace {

enum class Part { train, validation };

// Says which part each document of a corpus, or the end of each document, belongs to.
class Split {
 public:
  // Reads the corpus once.
  Split(const Corpus& corpus, InvalidUtf8 invalid, RecordRules rules, double share);

  DocumentReader read(const Corpus& corpus) const {
    return DocumentReader(corpus, invalid_, rules_);
  }

  bool by_document() const { return by_document_; }
  bool is_held_out(const std::string& text) const {
    return random_uniform({hash64(text), stream_id("held out")}, 0) < share_;
  }
  // Where the held-out end of a document begins, unless by_document.
  size_t tail_begin(const std::string& text) const;

  int64_t documents() const { return documents_; }
  int64_t text_bytes() const { return text_bytes_; }
  // Hash of all texts and of the settings that decide their parts.
  uint64_t hash() const { return hash_; }
  // What reading the corpus left out and changed.
  const TextNotes& notes() const { return notes_; }

 private:
  InvalidUtf8 invalid_;
  RecordRules rules_;
  double share_;
  bool by_document_ = true;
  int64_t documents_ = 0;
  int64_t text_bytes_ = 0;
  uint64_t hash_ = 0;
  TextNotes notes_;
};

Split::Split(const Corpus& corpus, InvalidUtf8 invalid, RecordRules rules, double share)
    : invalid_(invalid), rules_(std::move(rules)), share_(share) {
  double held_out_bytes = 0.0;
  DocumentReader reader = read(corpus);
  while (const auto document = reader.next()) {
    const std::string& text = document->text;
    ++documents_;
    text_bytes_ += static_cast<int64_t>(text.size());
    if (is_held_out(text)) held_out_bytes += static_cast<double>(text.size());
    hash_ = random_bits({hash_, hash64(text)}, text.size());
    for (const Segment& segment : document->segments) {
      hash_ = random_bits({hash_, segment.end}, segment.learn ? 1 : 0);
    }
  }
  notes_ = reader.notes();
  require(documents_ > 0, "all files of data.text are empty");
  const double wanted = share * static_cast<double>(text_bytes_);
  // The end of a document with segments would be an answer without its question.
  by_document_ = rules_.form != RecordForm::text ||
                 (held_out_bytes >= wanted / 2 && held_out_bytes <= wanted * 2);
  hash_ = random_bits({hash_, hash64(fmt::format("{} {}", share, by_document_))}, 0);
}

// The end begins after a line end if one is near, else between two characters.
size_t Split::tail_begin(const std::string& text) const {
  const auto size = static_cast<double>(text.size());
  auto begin = static_cast<size_t>((1.0 - share_) * size);
  const size_t line_end = text.rfind('\n', begin);
  if (line_end != text.npos && static_cast<double>(line_end) >= (1.0 - 2.0 * share_) * size) {
    return line_end + 1;
  }
  while (begin > 0 && begin < text.size() && (text[begin] & 0xC0) == 0x80) --begin;
  return begin;
}

struct PartOfDocument {
  Document document;
  Part part;
};

// Reads both parts in the order of the corpus.
class PartReader {
 public:
  PartReader(const Corpus& corpus, const Split& split)
      : documents_(split.read(corpus)), split_(split) {}

  std::optional<PartOfDocument> next() {
    if (tail_) return std::exchange(tail_, std::nullopt);
    auto document = documents_.next();
    if (!document) return std::nullopt;
    std::string& text = document->text;
    if (split_.by_document()) {
      const Part part = split_.is_held_out(text) ? Part::validation : Part::train;
      return PartOfDocument{std::move(*document), part};
    }
    const size_t begin = split_.tail_begin(text);
    if (begin < text.size()) {
      tail_ = {{.text = text.substr(begin), .place = document->place}, Part::validation};
    }
    text.resize(begin);
    return begin > 0 ? PartOfDocument{std::move(*document), Part::train}
                     : std::exchange(tail_, std::nullopt);
  }

 private:
  DocumentReader documents_;
  const Split& split_;
  std::optional<PartOfDocument> tail_;
};

void train_on(const Corpus& corpus, const Split& split, const TokenizerSection& config) {
  PartReader reader(corpus, split);
  std::string text;  // of the current document
  size_t begin = 0;
  const auto next_line = [&]() -> std::optional<std::string> {
    while (begin >= text.size()) {
      auto document = reader.next();
      if (!document) return std::nullopt;
      if (document->part != Part::train) continue;
      text = std::move(document->document.text);
      begin = 0;
    }
    const size_t end = std::min(text.find('\n', begin), text.size());
    const size_t line = std::exchange(begin, end + 1);
    return text.substr(line, end - line);
  };
  train_sentencepiece(next_line, config.vocab_size, config.model);
}

// Whether the configuration names a SentencePiece model that does not exist.
bool lacks_tokenizer(const TokenizerSection& config) {
  return config.type == TokenizerType::sentencepiece && !std::filesystem::exists(config.model);
}

void train_tokenizer(const Corpus& corpus, const Split& split, const TokenizerSection& config,
                     std::ostream& log) {
  require(!config.model.empty(), "data.tokenizer.model must name a file to write the model to");
  require(config.vocab_size > 0,
          "{} does not exist, and data.tokenizer.vocab_size does not say "
          "how many pieces to train",
          config.model);
  train_on(corpus, split, config);
  fmt::print(log, "trained {} pieces: {}\n", config.vocab_size, config.model);
}

// Encodes documents with all threads and writes them in their order.
class Encoder {
 public:
  // Notes what the tokens do not restore, and reports the bytes that it is through with.
  Encoder(const Tokenizer& tokenizer, TextNotes& notes, std::function<void(int64_t)> report)
      : tokenizer_(tokenizer), notes_(notes), report_(std::move(report)) {}

  // A document without a writer is left out.
  void add(Document document, TokenFileWriter* writer) {
    if (!writer) {
      done_bytes_ += static_cast<int64_t>(document.text.size());
      return;
    }
    waiting_bytes_ += document.text.size();
    waiting_.push_back({std::move(document), writer});
    if (waiting_bytes_ >= kBatchBytes) flush();
  }

  void flush() {
    std::vector<EncodedDocument> encoded(waiting_.size());
    std::vector<std::exception_ptr> errors(waiting_.size());
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < waiting_.size(); ++i) {
      try {
        encoded[i] = encode_document(tokenizer_, waiting_[i].document);
      } catch (...) {
        errors[i] = std::current_exception();
      }
      done_bytes_ += static_cast<int64_t>(waiting_[i].document.text.size());
      if (omp_get_thread_num() == 0) report_(done_bytes_);
    }
    for (size_t i = 0; i < waiting_.size(); ++i) {
      if (errors[i]) std::rethrow_exception(errors[i]);
      waiting_[i].writer->append_document(encoded[i].encoding.tokens, encoded[i].loss_mask);
      note(waiting_[i].document, encoded[i].encoding);
    }
    waiting_.clear();
    waiting_bytes_ = 0;
    report_(done_bytes_);
  }

 private:
  static constexpr size_t kBatchBytes = size_t{16} << 20;

  struct Waiting {
    Document document;
    TokenFileWriter* writer;
  };

  void note(const Document& document, const Encoding& encoding) {
    if (encoding.unknown > 0) notes_.unknown.add(document.place);
    notes_.unknown_tokens += encoding.unknown;
    if (encoding.changed_at) {
      notes_.changed.add(fmt::format("{} (byte {})", document.place, *encoding.changed_at));
    }
  }

  const Tokenizer& tokenizer_;
  TextNotes& notes_;
  std::vector<Waiting> waiting_;
  size_t waiting_bytes_ = 0;
  std::function<void(int64_t)> report_;
  std::atomic<int64_t> done_bytes_ = 0;
};

void check(const DataSection& config) {
  require(!config.train.empty(), "data.train must name the token file to write");
  require(config.validation_share >= 0.0 && config.validation_share <= 0.5,
          "data.validation_share {} must be from 0 to 0.5", config.validation_share);
  require(config.validation.empty() || config.validation_share > 0.0,
          "data.validation names a file, but data.validation_share is 0; set a share above 0");
}

// Checks all files that will be written, before the first of them is.
void check_outputs(const DataSection& config, const Corpus& corpus) {
  std::vector<NamedFile> inputs, others;
  for (const auto& path : corpus.files()) inputs.push_back({"data.text", path});
  const NamedFile model{"data.tokenizer.model", config.tokenizer.model};
  if (config.tokenizer.type != TokenizerType::byte && !model.path.empty()) {
    (lacks_tokenizer(config.tokenizer) ? others : inputs).push_back(model);
  }
  require_token_outputs(config, others, inputs);
  const std::string train = output_path(config.train, "data.train");
  const std::string validation = output_path(config.validation, "data.validation");
  for (const NamedFile& output :
       {NamedFile{"data.train", train}, NamedFile{"data.validation", validation}, model}) {
    require(output.path.empty() || !corpus.would_hold(output.path),
            "{} is {}, which data.text would read as text the next time; give it another extension "
            "or folder",
            output.name, output.path.string());
  }
}

InvalidUtf8 rule_for_invalid_utf8(const DataSection& config) {
  if (config.encoding_errors == EncodingErrors::replace) return InvalidUtf8::replace;
  // Its tokens are bytes, so it changes none.
  const bool keeps = config.tokenizer.type == TokenizerType::byte;
  return keeps ? InvalidUtf8::keep : InvalidUtf8::refuse;
}

}  // namespace

TokenizeReport tokenize(const DataSection& config, std::ostream& log,
                        const TokenizeProgress& progress) {
  if (names_token_arrays(config)) return tokenize_arrays(config, log);
  check(config);
  const Corpus corpus(config.text);
  check_outputs(config, corpus);
  const Split split(corpus, rule_for_invalid_utf8(config),
                    {config.record, config.text_field, config.max_bad_records},
                    config.validation.empty() ? 0.0 : config.validation_share);
  fmt::print(log, "{} documents in {} files, {:.1f} MB of text\n", split.documents(),
             corpus.files().size(), static_cast<double>(split.text_bytes()) * 1e-6);
  TokenizeReport report{.documents = split.documents(), .text_bytes = split.text_bytes()};
  report.trained_tokenizer = lacks_tokenizer(config.tokenizer);
  if (report.trained_tokenizer) train_tokenizer(corpus, split, config.tokenizer, log);
  const auto tokenizer = make_tokenizer(config.tokenizer);

  const TokenFileInfo info{.vocab_size = tokenizer->vocab_size(),
                           .end_of_document = tokenizer->end_of_document(),
                           .tokenizer = std::string(to_string(tokenizer->type())),
                           .tokenizer_hash = tokenizer->hash(),
                           .source = fmt::format("{}", fmt::join(config.text, ", ")),
                           .source_hash = fmt::format("{:016x}", split.hash()),
                           .loss_mask = config.record != RecordForm::text};
  TextNotes notes;
  const std::string train_path = output_path(config.train, "data.train");
  const std::string validation_path = output_path(config.validation, "data.validation");
  const auto train = open_token_output(train_path, info, log);
  const auto validation = open_token_output(validation_path, info, log);
  if (train || validation) {
    if (progress) progress(0, split.text_bytes());
    Encoder encoder(*tokenizer, notes, [&](int64_t done) {
      if (progress) progress(done, split.text_bytes());
    });
    PartReader reader(corpus, split);
    while (auto part = reader.next()) {
      TokenFileWriter* writer = (part->part == Part::train ? train : validation).get();
      encoder.add(std::move(part->document), writer);
    }
    encoder.flush();
    require_documents(train.get(), validation.get());
    report.train_tokens = finish_token_output(train.get(), train_path, log);
    report.validation_tokens = finish_token_output(validation.get(), validation_path, log);
  }
  for (const TextNotes& of : {corpus.notes(), split.notes(), notes}) {
    for (const std::string& line : of.lines()) fmt::print(log, "{}\n", line);
  }
  return report;
}

}  // namespace switchyard
