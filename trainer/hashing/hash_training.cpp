#include "trainer/hashing/hash_training.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/config/schema.h"
#include "trainer/files/outputs.h"
#include "trainer/hashing/hash_weights.h"
#include "trainer/hashing/head_file.h"
#include "trainer/training/stop_signal.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// With hash.training.num_sequences: 0, at least this many pairs and sequences are used. The paper's
// 11 sequences are enough where each has tens of thousands of keys.
constexpr int64_t kEnoughPairs = 1 << 17;
constexpr int64_t kFewestSequences = 11;

// The ranking objective learns for contexts from a sixteenth of the sequences' length on, for long
// ones no more than for short ones; the paper takes queries of long contexts.
QuerySpread training_spread(const HashTrainingConfig& training) {
  if (training.objective == HashObjectiveKind::ranking)
    return {.from = 1.0 / 16, .by_octave = true};
  return {};
}

// The mean of the positions, as a share of the sequence.
double mean_position(const QuerySpread& spread) {
  if (spread.by_octave) return (1.0 - spread.from) / std::log(1.0 / spread.from);
  return 0.5 * (1.0 + spread.from);
}

// Quality is measured where much is left out.
constexpr QuerySpread kMeasured{.from = 0.5, .by_octave = false};

std::string describe(const QuerySpread& spread) {
  return fmt::format("{}{}", spread.from, spread.by_octave ? ", by octave" : "");
}

std::string hex(std::string_view text) { return fmt::format("{:016x}", hash64(text)); }

// The values that decide the projections, as YAML.
std::string settings_of(const RunConfig& config) {
  static const std::vector<std::string> others = {
      "hash.training.tokens",        "hash.training.seq_len",
      "hash.training.num_sequences", "hash.training.held_out_sequences",
      "hash.training.queries",       "hash.training.keep_query_keys"};
  std::string text;
  for (const ConfigField& field : config_schema()) {
    const bool decides = field.key == "run.seed" || field.key == "hash.bits" ||
                         field.key == "hash.dense_layers" ||
                         field.key.starts_with("hash.training.");
    if (!decides || std::ranges::find(others, field.key) != others.end()) continue;
    text += fmt::format("{}: {}\n", field.key, field.print(config));
  }
  return text;
}

Json to_json(const HashLoss& loss, HashObjectiveKind objective) {
  if (objective == HashObjectiveKind::ranking) return {{"loss", loss.ranking}};
  return {{"loss", loss.total()},
          {"similarity", loss.similarity},
          {"balance", loss.balance},
          {"decorrelation", loss.decorrelation},
          {"orthogonality", loss.orthogonality}};
}

// The figures of the learned projection, and beside them those of the others by their names.
Json to_json(const std::vector<NamedQuality>& held_out) {
  const HashQuality& learned = held_out.front().quality;
  Json result = {{"queries", learned.queries}, {"budgets", kBudgets}};
  for (const NamedQuality& of : held_out) {
    const std::string suffix = &of == &held_out.front() ? "" : "_" + of.name;
    result["recall" + suffix] = of.quality.recall;
    result["attention_mass" + suffix] = of.quality.attention_mass;
  }
  result["attention_mass_best"] = learned.best_mass;
  return result;
}

std::string describe(const std::vector<NamedQuality>& held_out) {
  const HashQuality &learned = held_out.front().quality, &other = held_out.back().quality;
  std::string text;
  for (size_t b = 0; b < kBudgets.size(); ++b) {
    text += fmt::format("  {:.2f} %: recall {:.3f} ({} {:.3f}) mass {:.3f} ({:.3f})",
                        1e2 * kBudgets[b], learned.recall[b], held_out.back().name, other.recall[b],
                        learned.attention_mass[b], other.attention_mass[b]);
  }
  return text;
}

// Copies one head's tensors into those of its layer.
//   head, layer  [1, ...] and [heads, ...]; the layer's is made if it is not there yet
void put_head(const Tensor& head, int64_t heads, int64_t number, Tensor& layer) {
  if (!head) return;
  if (!layer) {
    std::vector<int64_t> dims(head.shape().dims().begin(), head.shape().dims().end());
    dims[0] = heads;
    layer = Tensor(Shape(dims), DType::f32);
  }
  std::copy_n(head.data<float>(), head.num_elements(), layer.view().rows(number, 1).data<float>());
}

}  // namespace

HashTraining::HashTraining(MpiRuntime& mpi, const RunConfig& config, const Tokenizer& tokenizer,
                           Session& session, std::string checkpoint_fingerprint)
    : mpi_(mpi),
      config_(config),
      paths_(config.run.dir),
      session_(session),
      lock_(mpi.world(), paths_.hash(), "train-hash"),
      fingerprint_(std::move(checkpoint_fingerprint)) {
  const HashTrainingConfig& training = config_.hash.training;
  const ModelConfig& model = config_.model;
  run_collectively(mpi_.world(), [&] {
    require(config_.hash.dense_layers < model.num_layers,
            "hash.dense_layers = {} leaves none of the {} layers to learn for; lower it",
            config_.hash.dense_layers, model.num_layers);
    training_tokens_ = open_tokens(training_sources(), tokenizer);
    if (training.held_out_sequences > 0 && !config_.data.validation.empty()) {
      held_out_tokens_ = open_tokens(config_.data.validation, tokenizer);
    }
    if (is_first_rank()) require_outputs();
  });
  require_same_on_all_ranks(mpi_.world(), training_tokens_->files, training_sources());
  if (held_out_tokens_) {
    require_same_on_all_ranks(mpi_.world(), held_out_tokens_->files, config_.data.validation);
  }
  training_ = make_set("train", *training_tokens_, num_training_sequences(*training_tokens_),
                       training_spread(training));
  if (held_out_tokens_) {
    held_out_ = make_set(
        "held_out", *held_out_tokens_,
        std::min(training.held_out_sequences, held_out_tokens_->loader.samples_per_epoch()),
        kMeasured);
  }
  make_settings(*training_tokens_);
  for (int layer = config_.hash.dense_layers; layer < model.num_layers; ++layer) {
    for (int head = 0; head < model.num_kv_heads; ++head) units_.push_back({layer, head});
  }
}

std::vector<DataSource> HashTraining::training_sources() const {
  const std::string& tokens = config_.hash.training.tokens;
  return tokens.empty() ? config_.data.train : std::vector<DataSource>{{.path = tokens}};
}

std::unique_ptr<HashTraining::Tokens> HashTraining::open_tokens(
    const std::vector<DataSource>& sources, const Tokenizer& tokenizer) const {
  require(!sources.empty(), "data.train is missing: it names the token file to learn from");
  const int64_t seq_len = config_.hash.training.seq_len;
  // The loader has one dp rank on every layout: ranks share the blocks, not the parts of a batch.
  return std::make_unique<Tokens>(
      sources, tokenizer,
      DataLoaderConfig{.seq_len = seq_len > 0 ? seq_len : config_.model.seq_len,
                       .vocab_size = config_.model.vocab_size,
                       .micro_batch_size = config_.train.micro_batch_size,
                       .global_batch_size = config_.train.micro_batch_size,
                       .mask = config_.data.mask,
                       .seed = config_.run.seed,
                       .dp_rank = 0,
                       .dp = 1});
}

int64_t HashTraining::num_training_sequences(const Tokens& tokens) const {
  const HashTrainingConfig& training = config_.hash.training;
  const int64_t available = tokens.loader.samples_per_epoch();
  if (training.num_sequences > 0) return std::min(training.num_sequences, available);
  const int64_t seq_len = training.seq_len > 0 ? training.seq_len : config_.model.seq_len;
  const double seen = mean_position(training_spread(training)) * static_cast<double>(seq_len);
  const auto enough = static_cast<int64_t>(std::ceil(static_cast<double>(kEnoughPairs) / seen));
  return std::min(std::max(enough, kFewestSequences), available);
}

QueryKeySet HashTraining::make_set(const std::string& name, const Tokens& tokens,
                                   int64_t num_sequences, const QuerySpread& spread) const {
  const ParallelLayout& layout = session_.dist.layout();
  QueryKeySet set{.folder = paths_.query_keys(),
                  .name = name,
                  .key = {},
                  .seed = config_.run.seed,
                  .num_sequences = num_sequences,
                  .sequences_per_block = config_.train.micro_batch_size,
                  .queries_per_sequence = config_.hash.training.queries_per_sequence(),
                  .spread = spread,
                  .first_layer = config_.hash.dense_layers};
  const int64_t seq_len = config_.hash.training.seq_len;
  set.key = hex(fmt::format(
      "{} {:016x} {} {} {} {} {} {} {} {} {} {} {} {}", fingerprint_, tokens.loader.fingerprint(),
      seq_len > 0 ? seq_len : config_.model.seq_len, static_cast<int>(config_.data.mask), set.seed,
      set.num_sequences, set.sequences_per_block, set.queries_per_sequence, describe(set.spread),
      set.first_layer, layout.tp(), layout.ep(), to_string(config_.run.compute_dtype),
      session_.stream.device().kind == DeviceKind::cpu ? "cpu" : "cuda"));
  return set;
}

void HashTraining::make_settings(const Tokens& tokens) {
  settings_ = settings_of(config_);
  const int64_t seq_len = config_.hash.training.seq_len;
  settings_ += fmt::format(
      "tokens: {:016x}\nseq_len: {}\nnum_sequences: {}\nqueries: {}\nqueries_from: {}\n",
      tokens.loader.fingerprint(), seq_len > 0 ? seq_len : config_.model.seq_len,
      training_.num_sequences, training_.queries_per_sequence, describe(training_.spread));
  head_key_ = hex(settings_ + training_.key + (held_out_ ? held_out_->key : ""));
}

// Throws Error if what will be written would replace anything else.
void HashTraining::require_outputs() const {
  const NamedFile weights{"hash.weights", hash_weights_path(config_, config_.hash.bits)};
  const NamedFile metrics{"run.dir", paths_.hash_metrics()};
  require_replaceable_weights(weights);
  require_replaceable(metrics, "the metrics of a hash training",
                      [](const fs::path& path) { return begins_with(path, "{\"layer\":"); });
  const std::vector<NamedFile> outputs = {weights, metrics};
  require_distinct(outputs, {});
  for (const fs::path& removed : {paths_.hash_heads(), paths_.query_keys()}) {
    require(!is_within(weights.path, removed),
            "hash.weights is {}, but {} is removed when the weights are written; name a file "
            "elsewhere",
            weights.path.string(), removed.string());
  }
}

// Rank 0 looks at the file, and all ranks return its answer.
bool HashTraining::is_finished() const {
  uint8_t finished = 0;
  if (is_first_rank()) {
    try {
      const HashWeights weights = load_hash_weights(hash_weights_path(config_, config_.hash.bits));
      finished = weights.checkpoint_fingerprint == fingerprint_ && weights.settings == settings_;
    } catch (const Error&) {
      // There are no usable weights, so they are learned now.
    }
  }
  Stream stream;
  mpi_.world().broadcast(stream, view_of(std::span(&finished, 1)), 0);
  return finished != 0;
}

// The unfinished files of killed trainings.
void HashTraining::remove_leftovers() const {
  std::vector<fs::path> leftovers;
  for (const fs::path& folder : {paths_.hash(), paths_.hash_heads(), paths_.query_keys()}) {
    if (!fs::exists(folder)) continue;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() == ".tmp") leftovers.push_back(entry.path());
    }
  }
  for (const fs::path& path : leftovers) fs::remove(path);
}

bool HashTraining::run() {
  run_collectively(mpi_.world(), [&] {
    if (is_first_rank()) remove_leftovers();
  });
  if (is_finished()) {
    run_collectively(mpi_.world(), [&] { remove_intermediate_files(); });
    print_line(
        fmt::format("{} was learned on this checkpoint with these settings; remove it to learn it "
                    "again",
                    hash_weights_path(config_, config_.hash.bits).string()));
    return true;
  }
  run_collectively(mpi_.world(), [&] {
    if (is_first_rank()) fs::create_directories(paths_.hash_heads());
  });
  collect(training_, *training_tokens_);
  if (held_out_) collect(*held_out_, *held_out_tokens_);
  if (!stopped_) train_units();
  if (stopped_) {
    print_line("stopped by a signal; start again to go on with what is done");
    return false;
  }
  publish();
  return true;
}

// Asked between blocks and between heads, which are stored one by one.
bool HashTraining::stops() {
  stopped_ = stopped_ || StopSignal::received_by_any(mpi_.world());
  return stopped_;
}

void HashTraining::collect(const QueryKeySet& set, Tokens& tokens) {
  const int64_t computed = collect_query_keys(session_.stream, session_.model, session_.dist,
                                              tokens.loader, set, [this] { return stops(); });
  print_line(fmt::format("{}: queries and keys of {} sequences, {} of {} passes run now", set.name,
                         set.num_sequences, computed, set.num_blocks()));
}

fs::path HashTraining::head_path(const Unit& unit) const {
  return paths_.hash_heads() / fmt::format("layer_{:03d}_head_{:03d}.h5", unit.layer, unit.kv_head);
}

// The indices of the units that no earlier training finished, by the files that rank 0 finds.
std::vector<size_t> HashTraining::missing_units() const {
  std::vector<uint8_t> missing(units_.size());
  run_collectively(mpi_.world(), [&] {
    if (!is_first_rank()) return;
    for (size_t u = 0; u < units_.size(); ++u) {
      missing[u] = !load_head(head_path(units_[u]), head_key_).has_value();
    }
  });
  Stream stream;
  mpi_.world().broadcast(stream, view_of(std::span(missing)), 0);
  std::vector<size_t> indices;
  for (size_t u = 0; u < units_.size(); ++u) {
    if (missing[u]) indices.push_back(u);
  }
  return indices;
}

void HashTraining::train_units() {
  run_collectively(mpi_.world(), [&] {
    size_ = size_of_set(training_);
    require(size_.pairs > size_.queries,
            "every query of {} sees its own key alone, so no key is dissimilar; raise "
            "hash.training.seq_len or take longer documents",
            describe(training_sources()));
  });
  run_collectively(mpi_.world(), [&] {
    if (!is_first_rank()) return;
    metrics_file_.emplace(paths_.hash_metrics());
    metrics_.emplace(metrics_file_->path(), 0);
  });
  const std::vector<size_t> missing = missing_units();
  print_line(
      fmt::format("learning {} bits for {} heads from {} pairs each, {} heads are done already",
                  config_.hash.bits, units_.size(), size_.pairs, units_.size() - missing.size()));
  const auto world = static_cast<size_t>(mpi_.world_size());
  for (size_t begin = 0; begin < missing.size(); begin += world) {
    log_units_before(missing[begin]);
    if (stops()) return;
    session_.dist.set_phase(Phase::learning_hash);
    const size_t own = begin + static_cast<size_t>(mpi_.rank());
    run_collectively(mpi_.world(), [&] {
      if (own >= missing.size()) return;
      const Unit& unit = units_[missing[own]];
      const HeadTask task{.training = training_,
                          .held_out = held_out_ ? &*held_out_ : nullptr,
                          .layer = unit.layer,
                          .kv_head = unit.kv_head,
                          .bits = config_.hash.bits,
                          .size = size_};
      save_head(head_path(unit), head_key_, train_head(task, config_.hash.training));
    });
  }
  log_units_before(units_.size());
}

// Logs in the order of the units, whichever rank learned them and when.
void HashTraining::log_units_before(size_t end) {
  run_collectively(mpi_.world(), [&] {
    if (!is_first_rank()) return;
    for (; logged_ < end; ++logged_) {
      const std::optional<HeadResult> result = load_head(head_path(units_[logged_]), head_key_);
      require(result.has_value(), "{} was removed or damaged; run train-hash again",
              head_path(units_[logged_]).string());
      log_unit(units_[logged_], *result);
    }
  });
}

void HashTraining::log_unit(const Unit& unit, const HeadResult& result) {
  const Json place = {{"layer", unit.layer}, {"kv_head", unit.kv_head}};
  const bool ranking = config_.hash.training.objective == HashObjectiveKind::ranking;
  for (size_t i = 0; i < result.losses.size(); ++i) {
    Json record = place;
    if (ranking) {
      record["step"] = i == 0 ? 0 : config_.hash.training.ranking.steps;
    } else {
      record["epoch"] = i;
    }
    record.update(to_json(result.losses[i], config_.hash.training.objective));
    metrics_->append(record.dump() + '\n');
  }
  const HashLoss &first = result.losses.front(), &last = result.losses.back();
  std::string line = fmt::format("layer {} head {}  loss {:.4f} -> {:.4f}", unit.layer,
                                 unit.kv_head, first.total(), last.total());
  if (!ranking) line += fmt::format("  ||W'W - I|| {:.3f}", last.orthogonality);
  // A small rise may be chance. (The paper's loss is negative where most labels are.)
  if (last.total() - first.total() > 0.1 * std::abs(first.total()))
    line += "  (the loss rose: lower its learning rate)";
  if (!result.held_out.empty()) {
    Json record = place;
    record["held_out"] = to_json(result.held_out);
    metrics_->append(record.dump() + '\n');
    line += describe(result.held_out);
  }
  print_line(line);
}

void HashTraining::publish() {
  const fs::path path = hash_weights_path(config_, config_.hash.bits);
  run_collectively(mpi_.world(), [&] {
    if (!is_first_rank()) return;
    lock_.require_in_place();
    const ModelConfig& model = config_.model;
    HashWeights weights{.bits = config_.hash.bits,
                        .head_dim = model.head_dim,
                        .num_kv_heads = model.num_kv_heads,
                        .num_layers = model.num_layers,
                        .checkpoint_fingerprint = fingerprint_,
                        .settings = settings_,
                        .layers = {}};
    weights.layers.resize(static_cast<size_t>(model.num_layers));
    for (const Unit& unit : units_) {
      const std::optional<HeadResult> result = load_head(head_path(unit), head_key_);
      require(result.has_value(), "{} was removed or damaged; run train-hash again",
              head_path(unit).string());
      HashTensors& layer = weights.layers[static_cast<size_t>(unit.layer)];
      layer.key_planes = result->hash.key_planes;
      for (const NamedHashTensor& of : kHashTensors) {
        put_head(result->hash.*of.tensor, model.num_kv_heads, unit.kv_head, layer.*of.tensor);
      }
    }
    // The weights come last: without them the next training writes both anew.
    metrics_.reset();
    metrics_file_->publish();
    save_hash_weights(path, weights);
    remove_intermediate_files();
  });
  print_line(fmt::format("wrote {}", path.string()));
}

// Also called when the weights are there already: the process that wrote them may have been killed
// before it came here.
void HashTraining::remove_intermediate_files() const {
  if (!is_first_rank()) return;
  fs::remove_all(paths_.hash_heads());
  if (!config_.hash.training.keep_query_keys) fs::remove_all(paths_.query_keys());
}

void HashTraining::print_line(const std::string& text) const {
  if (is_first_rank()) std::cout << text << std::endl;
}

}  // namespace switchyard
