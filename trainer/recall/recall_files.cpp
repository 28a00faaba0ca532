#include "trainer/recall/recall_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/data/token_file.h"
#include "trainer/data/token_output.h"
#include "trainer/data/tokenizer.h"
#include "trainer/recall/recall_task.h"

namespace switchyard {
namespace {

// Must rise with every change of the generator that makes other samples of the same options.
constexpr int kGeneratorVersion = 1;

void check(const DataSection& config, int64_t seq_len) {
  require(!config.train.empty(), "data.train must name the token file to write");
  require(seq_len > 0, "model.seq_len is missing: it is the length of the sequences");
  require(config.recall.train_sequences > 0,
          "data.recall.train_sequences is missing: it is the number of sequences to train on");
  require(config.validation.empty() || config.recall.validation_sequences > 0,
          "data.validation names a file, but data.recall.validation_sequences is 0; set it");
  for (const ConfigProblem& problem : check_recall(config.recall, seq_len)) {
    fail("{}: {}", problem.key, problem.text);
  }
  require_token_outputs(config, {}, {});
}

std::string describe(const RecallSection& options, int64_t seq_len) {
  std::vector<std::string_view> tasks;
  for (const RecallTask task : options.tasks) tasks.push_back(to_string(task));
  return fmt::format(
      "recall: {}; seed {}, {} + {} sequences of {}, shortest {}, practice_share {}, "
      "train_share {}, "
      "distractor_share {}, {} values, {} queries, {} hops",
      fmt::join(tasks, ", "), options.seed, options.train_sequences, options.validation_sequences,
      seq_len, options.shortest, options.practice_share, options.train_share,
      options.distractor_share, options.values, options.queries, options.hops);
}

// The length of each sample in a training sequence.
int64_t sample_length(const RecallSection& options, int64_t seq_len, int64_t sequence) {
  const std::vector<int64_t> lengths = recall_lengths(options, seq_len);
  const uint64_t draw =
      random_bits({options.seed, stream_id("recall length")}, static_cast<uint64_t>(sequence));
  return lengths[draw % lengths.size()];
}

// Only the answers count as targets.
void append(const RecallSample& sample, TokenFileWriter& writer) {
  std::vector<uint8_t> loss_mask(sample.tokens.size() + 1, 0);
  for (const RecallAnswer& answer : sample.answers) {
    loss_mask[static_cast<size_t>(answer.position)] = 1;
  }
  writer.append_document(sample.tokens, loss_mask);
}

void write_training(const RecallSection& options, int64_t seq_len, TokenFileWriter& writer) {
  for (int64_t sequence = 0; sequence < options.train_sequences; ++sequence) {
    const int64_t length = sample_length(options, seq_len, sequence);
    for (int64_t i = 0; i < seq_len / length; ++i) {
      append(make_recall_sample(options, RecallPart::train, writer.num_documents(), length),
             writer);
    }
  }
}

void write_held_out(const RecallSection& options, int64_t seq_len, TokenFileWriter& writer) {
  for (int64_t i = 0; i < options.validation_sequences; ++i) {
    append(make_recall_sample(options, RecallPart::held_out, i, seq_len), writer);
  }
}

}  // namespace

TokenizeReport make_recall_files(const DataSection& config, int64_t seq_len, std::ostream& log) {
  check(config, seq_len);
  const auto tokenizer = make_tokenizer(config.tokenizer);
  const std::string source = describe(config.recall, seq_len);
  const TokenFileInfo info{.vocab_size = tokenizer->vocab_size(),
                           .end_of_document = tokenizer->end_of_document(),
                           .tokenizer = std::string(to_string(tokenizer->type())),
                           .tokenizer_hash = tokenizer->hash(),
                           .source = source,
                           .source_hash = fmt::format(
                               "{:016x}", hash64(fmt::format("{} {}", kGeneratorVersion, source))),
                           .loss_mask = true};
  const std::string train_path = output_path(config.train, "data.train");
  const std::string validation_path = output_path(config.validation, "data.validation");
  const auto train = open_token_output(train_path, info, log);
  const auto validation = open_token_output(validation_path, info, log);

  if (train) write_training(config.recall, seq_len, *train);
  if (validation) write_held_out(config.recall, seq_len, *validation);
  TokenizeReport report;
  for (TokenFileWriter* writer : {train.get(), validation.get()}) {
    if (writer) report.documents += writer->num_documents();
  }
  report.train_tokens = finish_token_output(train.get(), train_path, log);
  report.validation_tokens = finish_token_output(validation.get(), validation_path, log);
  return report;
}

}  // namespace switchyard
