#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/runtime/enum_names.h"
#include "kernels/runtime/tensor.h"
#include "layers/decoding/decode_config.h"
#include "layers/model_config.h"
#include "optim/optimizer_config.h"
#include "parallel/expert_exchange.h"
#include "trainer/config/hash_config.h"
#include "trainer/config/recall_config.h"
#include "trainer/config/text_tasks_config.h"

namespace switchyard {

enum class TokenizerType { byte, sentencepiece, huggingface, recall };
SWITCHYARD_ENUM_NAMES(TokenizerType, byte, sentencepiece, huggingface, recall)

enum class AttentionMask { causal, document };
SWITCHYARD_ENUM_NAMES(AttentionMask, causal, document)

// What `tokenize` does about bytes that are not UTF-8.
enum class EncodingErrors { strict, replace };
SWITCHYARD_ENUM_NAMES(EncodingErrors, strict, replace)

// What a record of a .jsonl file holds: one text, all of which counts as targets, or parts of which
// only some do.
enum class RecordForm { text, prompt_completion, segments };
SWITCHYARD_ENUM_NAMES(RecordForm, text, prompt_completion, segments)

// The numbers of a flat token array, which does not say it itself.
enum class ArrayDType { none, u16, u32 };
SWITCHYARD_ENUM_NAMES(ArrayDType, none, u16, u32)

// One experiment, as the YAML file describes it with every default filled in. One struct per
// section of the file; the names are the keys.
struct RunSection {
  std::string dir;  // folder of all files of the run; see RunPaths
  uint64_t seed = 1234;
  std::string device = "cpu";
  DType compute_dtype = DType::f32;  // f32 or bf16
  int64_t collective_timeout = 600;  // seconds; see Watchdog
};

struct ParallelSection {
  int tp = 1;
  int ep = 1;
  Deduplicate deduplicate = Deduplicate::rank;
  // Parts of a micro-batch; the transfers of one overlap with the experts' work on another; 0:
  // chosen for the device
  int exchange_chunks = 0;
  bool recompute = false;  // keep only block inputs; run each block again in the backward pass
};

struct TokenizerSection {
  TokenizerType type = TokenizerType::byte;
  std::string model;                 // sentencepiece: the .model file; huggingface: tokenizer.json
  int64_t vocab_size = 0;            // sentencepiece: pieces to train in `tokenize`
  std::string end_of_document = "";  // huggingface: a token's text; empty: what files beside it say
};

// A token file that is read, perhaps beside others.
struct DataSource {
  std::string path;
  double weight = 1.0;    // of training: its part of the samples is this, divided by all weights
  std::string name = {};  // of evaluation, in metrics; empty: the file's without its extension
};

struct DataSection {
  std::vector<DataSource> train;
  std::vector<DataSource> validation;  // may be empty: no evaluation
  TokenizerSection tokenizer;
  AttentionMask mask = AttentionMask::causal;
  EncodingErrors encoding_errors = EncodingErrors::strict;
  // `tokenize`: text files or folders (see Corpus), one document per file or per line of a .jsonl
  // file, or token arrays; how a line is read, how many may be unreadable, and the share of the
  // documents that is held out for validation.
  std::vector<std::string> text;
  RecordForm record = RecordForm::text;
  std::string text_field = "text";  // a path of keys, with dots between them
  int64_t max_bad_records = 0;
  ArrayDType array_dtype = ArrayDType::none;
  double validation_share = 0.02;
  RecallSection recall;
};

struct TrainSection {
  int64_t max_steps = 0;
  int64_t micro_batch_size = 1;   // sequences per dp rank and forward pass
  int64_t global_batch_size = 1;  // sequences per optimizer step
  int64_t eval_interval = 0;      // steps; 0: only after the last one
  int64_t eval_batches = 16;      // global batches per evaluation, from the start of the file
};

struct CheckpointSection {
  int64_t interval = 0;  // steps; 0: only after the last one, and on a signal
  int keep = 2;          // number of newest checkpoints that are kept; 0: all
  // auto: the newest intact checkpoint, or a fresh start if there is none at all; none: a fresh
  // start; or the path of a checkpoint
  std::string resume = "auto";
};

struct LogSection {
  int64_t interval = 10;  // steps between console lines
  bool tensorboard = true;
};

// Where the keys and values are that decoding reads: on the device, in host memory, or (CPU) in a
// file in run.dir.
enum class Offload { none, memory, file };
SWITCHYARD_ENUM_NAMES(Offload, none, memory, file)

// How `generate`, `eval` and `eval-hash` decode. hash.dense_layers says which layers stay dense.
struct DecodeSection {
  DecodeConfig keys;
  // eval, eval-hash: how many of each held-out sequence's last tokens are decoded one by one; 0:
  // the lesser of 64 and half the sequence
  int64_t eval_tokens = 0;
  Offload offload = Offload::none;
};

// What `eval-hash` measures in addition to dense decoding.
struct HashEvaluationConfig {
  std::vector<DecodeMethod> methods = choosing_methods();
  // From 0.4 % to 25 %, including the paper's 1.56 % and 3.13 %.
  std::vector<double> budgets = {0.00390625, 0.0078125, 0.015625, 0.03125, 0.0625, 0.125, 0.25};
  std::vector<int64_t> bits;  // of the hash methods; empty: all whose weights exist
  bool key_norm = true;       // measure hata with the key-norm score, too
  int64_t sequences = 32;     // held-out sequences; 0: all
  int64_t seq_len = 0;        // their length; 0: model.seq_len
};

// The hash stage: one projection per key/value head, learned by train-hash on the frozen model.
struct HashSection {
  int bits = 128;        // of a code, a multiple of 32
  int dense_layers = 2;  // leading layers without codes, whose attention stays exact
  std::string weights;   // empty: see hash_weights_path
  HashTrainingConfig training;
  HashEvaluationConfig evaluation;
};

struct RunConfig {
  RunSection run;
  ModelConfig model;
  ParallelSection parallel;
  DataSection data;
  OptimizerConfig optimizer;
  TrainSection train;
  CheckpointSection checkpoint;
  LogSection log;
  HashSection hash;
  DecodeSection decode;
  TextTasksSection tasks;
};

}  // namespace switchyard
