#include "trainer/checkpoint/checkpoint_choice.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"
#include "parallel/distributed_context.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/gather_text.h"
#include "trainer/config/run_paths.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// A checkpoint whose manifest could be read.
struct Known {
  fs::path folder;
  TrainingState state;
  std::string fingerprint;
};

Known read_known(const fs::path& folder) {
  const Manifest manifest = CheckpointReader(folder).manifest();
  return {folder, manifest.state, checkpoint_fingerprint(manifest)};
}

std::optional<Known> try_read(const fs::path& folder) {
  try {
    return read_known(folder);
  } catch (const Error&) {
    return std::nullopt;  // Loading says what is wrong with it.
  }
}

// The first one that can be read.
std::optional<Known> first_known(const std::vector<fs::path>& folders) {
  for (const fs::path& folder : folders) {
    if (std::optional<Known> known = try_read(folder)) return known;
  }
  return std::nullopt;
}

// The same checkpoint among those of the run. Its contents decide: the run may be a copy, and the
// path another way to the same folder.
std::optional<fs::path> find_among(const std::vector<fs::path>& own, const Known& source) {
  for (const fs::path& folder : own) {
    const std::optional<Known> known = try_read(folder);
    if (known && known->fingerprint == source.fingerprint) return folder;
  }
  return std::nullopt;
}

// Whether the path lies in the folder of the run's checkpoints, as those do that were set aside.
bool lies_in(const fs::path& folder, const fs::path& checkpoint) {
  std::error_code error;
  return fs::equivalent(fs::canonical(checkpoint, error).parent_path(), folder, error);
}

std::string names_of(const std::vector<fs::path>& folders) {
  std::vector<std::string> names;
  for (const fs::path& folder : folders) names.push_back(folder.filename().string());
  return fmt::format("{}", fmt::join(names, ", "));
}

constexpr std::string_view kWeightsOf = "weights:";

// The path in checkpoint.resume.
std::string path_in(const std::string& wish) {
  return wish.starts_with(kWeightsOf) ? wish.substr(kWeightsOf.size()) : wish;
}

// A run of which a path was told, and which has checkpoints of its own, newest first.
class ToldRun {
 public:
  ToldRun(std::string wish, std::vector<fs::path> own)
      : wish_(std::move(wish)), own_(std::move(own)), newest_(first_known(own_)) {}

  CheckpointChoice choose() const {
    std::optional<Known> source;
    std::string problem;
    try {
      source = read_known(find_checkpoint(path_in(wish_)));
    } catch (const Error& error) {
      problem = error.what();
    }
    const bool wants_weights = wish_.starts_with(kWeightsOf);
    if (source && newest_ && source->fingerprint == newest_->fingerprint && !wants_weights) {
      return go_on({});
    }
    if (came_from(source)) {
      return go_on(
          fmt::format("this run came from {} and goes on from its own checkpoints; to "
                      "begin there again, give run.dir a new folder",
                      wish_));
    }
    if (!source) throw Error(problem);
    const auto mine = wants_weights ? std::nullopt : find_among(own_, *source);
    if (mine) return go_back(*mine, *source);
    if (!wants_weights && lies_in(own_.front().parent_path(), source->folder)) {
      return go_back(source->folder, *source);
    }
    fail(
        "checkpoint.resume: the checkpoints in {} (the newest is {}) do not come from {}; set "
        "checkpoint.resume=auto to go on from them, or give run.dir a new folder to begin with {}",
        own_.front().parent_path().string(), own_.front().filename().string(),
        source->folder.string(), wish_);
  }

 private:
  // A source that is gone, or damaged by now, is known by its path.
  bool came_from(const std::optional<Known>& source) const {
    if (!newest_) return false;
    return std::ranges::any_of(newest_->state.origins, [&](const Origin& origin) {
      return source ? origin.fingerprint == source->fingerprint : origin.path == wish_;
    });
  }

  CheckpointChoice go_on(std::string reason) const {
    return {.candidates = own_, .origin = {}, .reason = std::move(reason)};
  }

  CheckpointChoice go_back(const fs::path& folder, const Known& source) const {
    std::vector<fs::path> later;
    for (const fs::path& own : own_) {
      if (own == folder) break;
      later.push_back(own);
    }
    return {.candidates = {folder},
            .origin = Origin{wish_, source.fingerprint},
            .reason = fmt::format("back to {}: the next checkpoint that is saved sets aside {}",
                                  folder.filename().string(), names_of(later))};
  }

  const std::string wish_;
  const std::vector<fs::path> own_;  // newest first, at least one
  const std::optional<Known> newest_;
};

CheckpointChoice choose_for_training(const fs::path& run_dir, const std::string& wish) {
  if (wish == "none") return {};
  std::vector<fs::path> own = checkpoints_in(RunPaths(run_dir).checkpoints());
  std::ranges::reverse(own);
  if (wish == "auto") return {.candidates = own, .origin = {}, .reason = {}};
  if (!own.empty()) return ToldRun(wish, std::move(own)).choose();
  const Known source = read_known(find_checkpoint(path_in(wish)));
  return {.candidates = {source.folder},
          .of_this_run = false,
          .weights_alone = wish.starts_with(kWeightsOf),
          .origin = Origin{wish, source.fingerprint},
          .reason = {}};
}

CheckpointChoice choose_for_inference(const fs::path& run_dir, const std::string& wish) {
  CheckpointChoice choice;
  if (wish != "auto" && wish != "none") {
    choice.candidates = {find_checkpoint(path_in(wish))};
    choice.of_this_run = false;
    return choice;
  }
  const fs::path folder = RunPaths(run_dir).checkpoints();
  const std::vector<fs::path> own = checkpoints_in(folder);
  require(!own.empty(),
          "{} holds no checkpoint; train first, or name one with checkpoint.resume=PATH",
          folder.string());
  choice.candidates = {own.back()};
  return choice;
}

// CBOR and not JSON, because names of files need not be UTF-8.
std::string to_text(const CheckpointChoice& choice) {
  const auto bytes = [](const std::string& text) {
    return json::binary(std::vector<uint8_t>(text.begin(), text.end()));
  };
  json candidates = json::array();
  for (const fs::path& path : choice.candidates) candidates.push_back(bytes(path.string()));
  json encoded = {bytes(choice.reason), choice.of_this_run, choice.weights_alone,
                  std::move(candidates)};
  if (choice.origin) {
    encoded.push_back(bytes(choice.origin->path));
    encoded.push_back(bytes(choice.origin->fingerprint));
  }
  std::string text;
  json::to_cbor(encoded, text);
  return text;
}

CheckpointChoice parse_choice(const std::string& text) {
  const json encoded = json::from_cbor(text);
  const auto string = [](const json& bytes) {
    const json::binary_t& value = bytes.get_binary();
    return std::string(value.begin(), value.end());
  };
  CheckpointChoice choice;
  choice.reason = string(encoded.at(0));
  choice.of_this_run = encoded.at(1).get<bool>();
  choice.weights_alone = encoded.at(2).get<bool>();
  for (const json& path : encoded.at(3)) choice.candidates.emplace_back(string(path));
  if (encoded.size() > 4) choice.origin = Origin{string(encoded.at(4)), string(encoded.at(5))};
  return choice;
}

}  // namespace

CheckpointChoice choose_checkpoint(const fs::path& run_dir, const std::string& wish,
                                   CheckpointUse use) {
  return use == CheckpointUse::training ? choose_for_training(run_dir, wish)
                                        : choose_for_inference(run_dir, wish);
}

CheckpointChoice choose_checkpoint_together(Communicator& world, const fs::path& run_dir,
                                            const std::string& wish, CheckpointUse use) {
  std::string text;
  run_collectively(world, [&] {
    if (world.rank() == 0) text = to_text(choose_checkpoint(run_dir, wish, use));
  });
  return parse_choice(broadcast_text(world, text));
}

}  // namespace switchyard
