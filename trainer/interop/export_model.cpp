#include "trainer/interop/export_model.h"

#include <fmt/format.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/folder_lock.h"
#include "trainer/interop/compact_sources.h"
#include "trainer/interop/tensor_source.h"
#include "trainer/interop/tokenizer_files.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using safetensors::Declaration;
using safetensors::Element;

// The folder in which the files lie until all are written, and whose owner this job is.
class UnfinishedFolder {
 public:
  // Makes the folder. Throws CollectiveError if there is something that would be replaced, or if
  // another job exports to the same folder. Collective over `world`.
  UnfinishedFolder(Communicator& world, const fs::path& folder)
      : world_(world), folder_(fs::absolute(folder).lexically_normal()) {
    if (!folder_.has_filename()) folder_ = folder_.parent_path();
    unfinished_ = folder_;
    unfinished_ += ".switchyard_export.tmp";  // a name that nothing else has
    run_collectively(world_, [&] {
      if (world_.rank() == 0) require_free();
    });
    lock_.emplace(world_, unfinished_, "export", "name another folder with --to");
    run_collectively(world_, [&] {
      if (world_.rank() != 0) return;
      require_free();  // another job may have ended meanwhile
      remove_all_but_lock();
    });
  }
  // Removes the files unless they were published.
  ~UnfinishedFolder() {
    if (published_ || world_.rank() != 0) return;
    try {
      lock_->require_in_place();
      remove_all_but_lock();
      fs::remove(unfinished_ / kLockName);
      fs::remove(unfinished_);
    } catch (const std::exception&) {  // what cannot be removed stays for the next export
    }
  }
  UnfinishedFolder(const UnfinishedFolder&) = delete;
  UnfinishedFolder& operator=(const UnfinishedFolder&) = delete;

  const fs::path& path() const { return unfinished_; }
  // Not collective.
  void publish() {
    lock_->require_in_place();
    sync_folder(unfinished_);
    if (fs::exists(folder_)) fs::remove(folder_);
    fs::rename(unfinished_, folder_);
    published_ = true;
    // Only now: without its lock, another job would take the folder and empty it.
    fs::remove(folder_ / kLockName);
    sync_folder(folder_);
    sync_folder(folder_.parent_path());
  }

 private:
  void require_free() const {
    const bool is_free =
        !fs::exists(folder_) || (fs::is_directory(folder_) && fs::is_empty(folder_));
    require(is_free, "--to {} exists already: name a new folder, or remove it", folder_.string());
  }
  void remove_all_but_lock() const {
    for (const fs::directory_entry& entry : fs::directory_iterator(unfinished_)) {
      if (entry.path().filename() != kLockName) fs::remove_all(entry.path());
    }
  }

  Communicator& world_;
  fs::path folder_, unfinished_;
  std::optional<FolderLock> lock_;
  bool published_ = false;
};

std::vector<Declaration> declarations_of(const std::vector<TensorRule>& rules, Element element) {
  std::vector<Declaration> tensors;
  for (const TensorRule& rule : rules) {
    tensors.push_back({rule.name,
                       rule.is_f32 ? Element::f32 : element,
                       {rule.shape.dims().begin(), rule.shape.dims().end()}});
  }
  return tensors;
}

// Two tensors at a time: while one is read, the other is written. Of those that must be held whole
// there is one at a time.
void write_tensors(safetensors::Writer& file, std::span<const TensorRule> rules,
                   TensorSource& source, const std::map<TensorKey, Shape>& shapes) {
  std::mutex whole;
  std::atomic<bool> failed = false;
  std::vector<std::exception_ptr> errors(rules.size());
#pragma omp parallel for schedule(dynamic) num_threads(2)
  for (size_t i = 0; i < rules.size(); ++i) {
    if (failed) continue;
    const TensorRule& rule = rules[i];
    std::unique_lock lock(whole, std::defer_lock);
    if (holds_whole_tensor(rule)) lock.lock();
    try {
      evaluate(rule, source, shapes,
               [&](std::span<const float> values) { file.write(rule.name, values); });
    } catch (...) {
      errors[i] = std::current_exception();
      failed = true;
    }
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// This rank's share of the files: every n-th.
void write_weights(const WeightFolderWriter& writer, std::span<const TensorRule> rules,
                   CheckpointReader& reader, const Communicator& world) {
  CheckpointSource source(reader);
  const std::map<TensorKey, Shape> shapes = tensors_of(reader.manifest().shards);
  for (size_t shard = 0; shard < writer.num_shards(); ++shard) {
    const size_t tensors = writer.tensors_of(shard).size();
    if (shard % static_cast<size_t>(world.size()) == static_cast<size_t>(world.rank())) {
      const auto file = writer.open(shard);
      write_tensors(*file, rules.first(tensors), source, shapes);
      file->publish();
    }
    rules = rules.subspan(tensors);
  }
}

nlohmann::ordered_json config_json(const Form& form, const RunConfig& config,
                                   const ExportFacts& facts, Element element) {
  nlohmann::ordered_json json = form.write_config(config.model);
  const char* dtype = element == Element::bf16 ? "bfloat16" : "float32";
  json["eos_token_id"] = facts.end_of_document;
  json["bos_token_id"] = nullptr;
  json["pad_token_id"] = nullptr;
  json["dtype"] = dtype;
  json["torch_dtype"] = dtype;  // the name before transformers 4.56
  if (form.name() == "switchyard") {
    json["document_mask"] = config.data.mask == AttentionMask::document;
  }
  return json;
}

nlohmann::ordered_json generation_json(const RunConfig& config, const ExportFacts& facts) {
  nlohmann::ordered_json json = {{"eos_token_id", facts.end_of_document}};
  // A padded vocabulary: `generate` does not sample these ids here either.
  std::vector<int64_t> beyond;
  for (int64_t id = facts.tokenizer_size; id < config.model.vocab_size; ++id) beyond.push_back(id);
  if (!beyond.empty()) json["suppress_tokens"] = beyond;
  return json;
}

void write_texts(const fs::path& folder, const Form& form, const Manifest& manifest,
                 const RunConfig& config, const ExportFacts& facts, Element element) {
  const auto write = [&](const char* name, const std::string& text) {
    write_durably(folder / name, text);
  };
  write("config.json", config_json(form, config, facts, element).dump(2) + "\n");
  write("generation_config.json", generation_json(config, facts).dump(2) + "\n");
  write("README.md", model_card(manifest, config, facts, form, element));
  write_tokenizer_files(config.data.tokenizer, folder);
  if (form.name() != "switchyard") return;
  write("configuration_switchyard.py", std::string(kCompactConfiguration));
  write("modeling_switchyard.py", std::string(kCompactModeling));
}

}  // namespace

ExportReport export_model(MpiRuntime& mpi, CheckpointReader& reader, const RunConfig& config,
                          const ExportFacts& facts, const ExportOptions& options) {
  const Form* form = nullptr;
  std::vector<TensorRule> rules;
  run_collectively(mpi.world(), [&] {
    form = &choose_form(options.form, config.model);
    rules = form->rules(config.model);
  });
  UnfinishedFolder folder(mpi.world(), options.to);
  const WeightFolderWriter writer(folder.path(), declarations_of(rules, options.element),
                                  options.shard_bytes);
  run_collectively(mpi.world(), [&] {
    write_weights(writer, rules, reader, mpi.world());
    reader.require_current();
  });
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    writer.write_index();
    write_texts(folder.path(), *form, reader.manifest(), config, facts, options.element);
    folder.publish();
  });
  return {.form = name_for_people(*form),
          .tensors = static_cast<int64_t>(rules.size()),
          .bytes = writer.total_bytes(),
          .files = static_cast<int64_t>(writer.num_shards())};
}

}  // namespace switchyard
