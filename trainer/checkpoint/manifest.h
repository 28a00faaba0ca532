#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trainer/checkpoint/methods.h"
#include "trainer/checkpoint/piece_geometry.h"

namespace switchyard {

inline constexpr int kCheckpointVersion = 1;
inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kModelFileName[] = "model.h5";

// A checkpoint where a path in checkpoint.resume let a run begin, or go back to.
struct Origin {
  std::string path;         // as it was given
  std::string fingerprint;  // of the checkpoint; see checkpoint_fingerprint

  bool operator==(const Origin&) const = default;
};

// The state of a run except its tensors; the same on every rank. Randomness is a function of the
// seed and of positions, so the seed in the configuration is the whole random state.
struct TrainingState {
  int64_t step = 0;              // steps taken, skipped ones included
  int64_t optimizer_steps = 0;   // updates
  int64_t skipped_steps = 0;     // steps without an update
  int64_t samples_consumed = 0;  // sequences of the training data
  int64_t tokens = 0;            // target tokens trained on
  std::string dataset_fingerprint;
  std::string config;           // the resolved configuration, YAML
  std::string tokenizer_hash;   // Tokenizer::hash; empty in checkpoints of older programs
  std::string loss_mask_hash;   // of the training data, see loss_mask_hash_of; empty as the last
  std::vector<Origin> origins;  // oldest first; none in checkpoints of older programs
  Methods methods = {};         // empty as far as older programs did not choose

  bool operator==(const TrainingState&) const = default;
};

// The layout of the ranks that saved the checkpoint. It is for people; loading does not need it.
struct SavedLayout {
  int world_size = 1;
  int tp = 1;
  int ep = 1;

  bool operator==(const SavedLayout&) const = default;
};

// Part of a tensor, in a file: f32, little-endian.
struct StoredPiece {
  std::string kind;
  std::string name;
  PieceGeometry geometry;
  int64_t address = 0;  // of its first byte in the file
  uint32_t crc32c = 0;

  bool operator==(const StoredPiece&) const = default;
};

struct StoredFile {
  std::string name;
  int64_t bytes = 0;
  uint32_t crc32c = 0;
  std::vector<StoredPiece> pieces;

  bool operator==(const StoredFile&) const = default;
};

// manifest.json: everything about a checkpoint but the tensors' elements. A folder without a
// manifest is not a checkpoint.
struct Manifest {
  TrainingState state;
  SavedLayout layout;
  std::string model_fingerprint;  // of the names and shapes of the weights
  std::vector<StoredFile> shards;
  StoredFile model_file;  // model.h5, a view of the shards

  bool operator==(const Manifest&) const = default;
};

// (kind, name) of a tensor.
using TensorKey = std::pair<std::string, std::string>;

// Throws Error that names both hashes unless the checkpoint's run had this tokenizer; checkpoints
// of older programs do not say which one they had.
void require_same_tokenizer(const TrainingState& state, const std::string& tokenizer_hash,
                            const std::string& checkpoint);

// The text contains its own CRC32C.
std::string to_text(const Manifest& manifest);
// Throws Error that begins with `source` for anything but an undamaged manifest of this version.
Manifest parse_manifest(std::string_view text, const std::string& source);

// One shard's entry, as it is sent to the rank that writes the manifest.
std::string to_text(const StoredFile& file);
StoredFile parse_stored_file(std::string_view text);

// Every tensor with its shape. Throws Error unless the pieces of each tensor agree on the shape and
// have as many elements as the tensor.
std::map<TensorKey, Shape> tensors_of(const std::vector<StoredFile>& shards);
// Differs between checkpoints that differ in anything, tensors included, because what was learned
// from one must not be used with another. Moving the folder does not change it.
std::string checkpoint_fingerprint(const Manifest& manifest);
// Depends on the names and shapes of the weights, and is the same for every layout.
std::string model_fingerprint(const std::map<TensorKey, Shape>& tensors);

}  // namespace switchyard
