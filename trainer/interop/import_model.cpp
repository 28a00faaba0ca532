#include "trainer/interop/import_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "parallel/communicator.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/weights_checkpoint.h"
#include "trainer/config/config_error.h"
#include "trainer/config/field_types.h"
#include "trainer/config/run_paths.h"
#include "trainer/config/schema.h"
#include "trainer/data/tokenizer.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/folder_lock.h"
#include "trainer/files/folders.h"
#include "trainer/interop/tensor_source.h"
#include "trainer/interop/tokenizer_files.h"
#include "trainer/interop/upcycle.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Keys of the model that do not decide what it computes from its weights.
constexpr std::string_view kFreeKeys[] = {"model.seq_len", "model.router.aux_loss_coef",
                                          "model.router.z_loss_coef", "model.router.balance_scope"};

// Keys that an upcycled model may set beside them.
bool is_of_experts(std::string_view key) {
  return key == "model.structure" || key == "model.num_experts" ||
         key == "model.expert_ffn_hidden" || key.starts_with("model.router.");
}

// The first id of eos_token_id in config.json.
std::optional<int64_t> end_of_document_in(const ConfigJson& config) {
  if (!config.has("eos_token_id")) return std::nullopt;
  nlohmann::json id = config.object()["eos_token_id"];
  if (id.is_array() && !id.empty()) id = nlohmann::json(id.front());
  return id.is_number_integer() ? std::optional(id.get<int64_t>()) : std::nullopt;
}

// model.seq_len of the settings; 0 without one. What is wrong with it is found where settings are
// read.
int64_t wished_seq_len(const std::vector<std::string>& settings) {
  constexpr std::string_view kKey = "model.seq_len=";
  int64_t seq_len = 0;
  for (const std::string& setting : settings) {
    if (!setting.starts_with(kKey)) continue;
    const std::string value = setting.substr(kKey.size());
    if (field_types::parse_integer(value, 1, field_types::kLargestCount, &seq_len)) seq_len = 0;
  }
  return seq_len;
}

// The experiment of the folder's model, with the settings of the user.
LoadedConfig make_experiment(const ImportOptions& options, const ModelConfig& model,
                             bool has_document_mask) {
  RunConfig config;
  config.model = model;
  if (has_document_mask) config.data.mask = AttentionMask::document;
  config.run.dir = (fs::path("runs") / options.config.stem()).string();
  const std::string source = (options.from / "config.json").string();
  const LoadedConfig plain = parse_config(to_yaml(config), source);
  LoadedConfig loaded = load_stored_config(to_yaml(config), source, options.settings);
  if (!loaded.origins.contains("run.dir")) loaded.config.run.dir = config.run.dir;
  std::vector<std::string> problems;
  for (const ConfigField& field : config_schema()) {
    if (!field.key.starts_with("model.")) continue;
    const std::string theirs = field.print(plain.config), wanted = field.print(loaded.config);
    if (theirs == wanted || std::ranges::count(kFreeKeys, field.key) > 0 ||
        (options.upcycle && is_of_experts(field.key))) {
      continue;
    }
    problems.push_back(fmt::format("{}: {} is not the value of {}, which says {}; take the key out",
                                   field.key, wanted, source, theirs));
  }
  if (!problems.empty()) throw ConfigError(std::move(problems));
  return loaded;
}

// Removes what a failed import has made, while it still owns the run's folder.
class MadeParts {
 public:
  MadeParts(const fs::path& run, bool existed) : run_(run), run_existed_(existed) {}
  ~MadeParts() {
    if (keeps_) return;
    std::error_code ignored;  // a folder that is not empty stays
    for (const fs::path& part : parts_) fs::remove_all(part, ignored);
    if (run_existed_) return;
    fs::remove(run_ / kLockName, ignored);
    fs::remove(RunPaths(run_).checkpoints(), ignored);
    fs::remove(run_, ignored);
  }
  MadeParts(const MadeParts&) = delete;
  MadeParts& operator=(const MadeParts&) = delete;

  // A file or folder that is about to get its name; one that has it already is not removed.
  void add(const fs::path& part) {
    if (!fs::exists(part)) parts_.push_back(part);
  }
  void keep() { keeps_ = true; }

 private:
  fs::path run_;
  bool run_existed_, keeps_ = false;
  std::vector<fs::path> parts_;
};

// Whether the folders hold files of the same names and bytes, and nothing else.
bool hold_the_same(const fs::path& a, const fs::path& b) {
  const auto files_of = [](const fs::path& folder) {
    std::map<fs::path, std::string> files;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      files[entry.path().filename()] = entry.is_regular_file() ? read_file(entry.path()) : "";
    }
    return files;
  };
  return fs::is_directory(a) && fs::is_directory(b) && files_of(a) == files_of(b);
}

// The files of the folder's tokenizer, on their way into the run.
class ImportedTokenizer {
 public:
  ImportedTokenizer(const fs::path& from, std::optional<int64_t> end_of_document,
                    const fs::path& to, MadeParts& made)
      : to_(to), unfinished_(to), made_(made) {
    unfinished_ += ".switchyard_import.tmp";
    if (recognize_tokenizer(from)) copy(from, end_of_document);
    // An import that was killed may have left the same files.
    require(!fs::exists(to_) || (has_files() && hold_the_same(unfinished_, to_)),
            "{} exists already: name another folder with run.dir=PATH", to_.string());
  }
  ~ImportedTokenizer() {
    std::error_code ignored;
    fs::remove_all(unfinished_, ignored);
  }
  ImportedTokenizer(const ImportedTokenizer&) = delete;
  ImportedTokenizer& operator=(const ImportedTokenizer&) = delete;

  const std::optional<TokenizerSection>& section() const { return section_; }
  const std::string& hash() const { return hash_; }
  // Bytes need no file.
  bool has_files() const { return section_ && !section_->model.empty(); }
  void publish() const {
    if (!has_files() || fs::exists(to_)) return;
    made_.add(to_);
    fs::rename(unfinished_, to_);
  }

 private:
  void copy(const fs::path& from, std::optional<int64_t> end_of_document) {
    fs::remove_all(unfinished_);
    made_.add(unfinished_);
    copy_tokenizer_files(from, unfinished_, end_of_document);
    section_ = recognize_tokenizer(unfinished_);
    hash_ = make_tokenizer(*section_)->hash();
    if (!section_->model.empty()) {
      section_->model = (to_ / fs::path(section_->model).filename()).string();
    }
  }

  fs::path to_, unfinished_;
  MadeParts& made_;
  std::optional<TokenizerSection> section_;
  std::string hash_;
};

bool sets_tokenizer(const LoadedConfig& loaded) {
  return std::ranges::any_of(loaded.origins, [](const auto& origin) {
    return origin.first.starts_with("data.tokenizer.") && origin.second == "command line";
  });
}

void require_new_run(const RunConfig& config) {
  const fs::path checkpoints = RunPaths(config.run.dir).checkpoints();
  require(!holds_checkpoints(checkpoints),
          "{} holds checkpoints already: name another folder with run.dir=PATH",
          checkpoints.string());
}

// Every layer and every expert has a tensor of its own, so that the files bound what is described.
void require_plausible(const ConfigJson& config, const ModelConfig& model,
                       const WeightFolder& weights, bool stacks_experts) {
  const auto tensors = static_cast<int64_t>(weights.tensors().size());
  const int64_t moe_layers =
      model.structure == Structure::dense ? 0 : model.num_layers - model.first_dense_layers;
  const bool fits = model.num_layers <= tensors &&
                    (stacks_experts || int64_t{model.num_experts} * moe_layers <= tensors);
  require(fits, "{} speaks of {} layers and {} experts, and the files hold {} tensors",
          config.path().string(), model.num_layers, model.num_experts, tensors);
}

// The values that are not defaults, so that the file says what is particular about the model.
std::string experiment_of(const ImportOptions& options, const RunConfig& config,
                          std::string_view form) {
  return fmt::format(
      "# A model of the form {}, imported from {}.\n"
      "# eval, generate, train-hash and eval-hash take it as it is. `train` begins at its weights: "
      "give\n# data.train, train.max_steps, and the optimizer's and the batch's settings.\n{}",
      form, options.from.string(), to_short_yaml(config));
}

void write_experiment(const UnfinishedFile& unfinished, const fs::path& path,
                      const std::string& text) {
  // An import that was killed may have left the same text.
  require(!fs::exists(path) || read_file(path) == text,
          "--config {} exists already: name a new file", path.string());
  OutputFile file(unfinished.path());
  file.write(std::as_bytes(std::span(text)));
  file.close();
}

int64_t count_elements(const std::map<TensorKey, Shape>& tensors) {
  int64_t elements = 0;
  for (const auto& [key, shape] : tensors) {
    if (key.first == kWeights) elements += shape.num_elements();
  }
  return elements;
}

}  // namespace

ImportReport import_model(const ImportOptions& options) {
  require(fs::exists(options.from / "config.json"),
          "{} has no config.json: name a folder with config.json and safetensors files",
          options.from.string());
  ConfigJson json(options.from / "config.json");
  json.wish_positions(wished_seq_len(options.settings));
  const Form& form = form_of(json.text("model_type"));
  const WeightFolder weights(options.from);
  const ModelConfig model = form.read_config(json, weights);
  const bool has_document_mask = json.boolean("document_mask", false);  // of the compact form
  json.finish();
  require_plausible(json, model, weights, /*stacks_experts=*/form.name() == "switchyard");
  ImportReport report{.form = name_for_people(form),
                      .loaded = make_experiment(options, model, has_document_mask),
                      .checkpoint = {},
                      .notes = {}};
  if (options.upcycle) settle_upcycled_model(model, report.loaded);
  RunConfig& config = report.loaded.config;
  validate_config(report.loaded, /*world_size=*/1);
  require_new_run(config);  // before anything is made
  const bool existed = fs::exists(config.run.dir);
  const std::unique_ptr<Communicator> alone = make_self_communicator("import");
  const FolderLock lock(*alone, config.run.dir, "import");
  MadeParts made(config.run.dir, existed);
  require_new_run(config);  // another import may have ended meanwhile
  std::optional<ImportedTokenizer> tokenizer;
  if (!sets_tokenizer(report.loaded)) {
    tokenizer.emplace(options.from, end_of_document_in(json), RunPaths(config.run.dir).tokenizer(),
                      made);
  }
  TrainingState state;
  if (tokenizer && tokenizer->section()) {
    config.data.tokenizer = *tokenizer->section();
    state.tokenizer_hash = tokenizer->hash();
  } else if (tokenizer) {
    report.notes.push_back("the folder holds no tokenizer: say data.tokenizer in the experiment");
  }
  // Opened before the work: whether it can be written is found out, and no other import writes it.
  UnfinishedFile experiment(options.config);
  write_experiment(experiment, options.config,
                   experiment_of(options, config, name_for_people(form)));

  ForeignSource foreign(weights, form, model);
  std::unique_ptr<TensorSource> upcycled;
  if (options.upcycle) {
    upcycled = make_upcycled_source(foreign, model, config.model, config.run.seed);
  }
  TensorSource& source = upcycled ? *upcycled : foreign;
  const std::map<TensorKey, Shape> tensors = tensors_of(config.model);
  report.parameters = count_elements(tensors);
  state.config = to_yaml(config);
  const auto read = [&](const TensorKey& key, int64_t first, int64_t count,
                        std::span<float> values) { source.read(key, first, count, values); };
  report.checkpoint =
      write_weights_checkpoint(RunPaths(config.run.dir).checkpoints(), state, tensors, read, [&] {
        foreign.require_finite();
        lock.require_in_place();
        if (tokenizer) tokenizer->publish();
        made.add(options.config);
        experiment.publish();
      });
  made.keep();
  return report;
}

}  // namespace switchyard
