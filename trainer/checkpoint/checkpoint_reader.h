#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/tensor_piece.h"
#include "trainer/files/file_io.h"

namespace switchyard {

// Reads one checkpoint, whatever layout wrote it. Not collective.
class CheckpointReader {
 public:
  // Reads the manifest. Throws Error naming the file if it is missing, damaged or of another
  // version.
  explicit CheckpointReader(std::filesystem::path folder);

  const std::filesystem::path& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }

  // Throws Error if the folder no longer holds the checkpoint that was opened: a run that trains
  // removes old ones, and may replace one by another of the same step. What was read before is then
  // worth nothing.
  void require_current() const;

  // Describes the damage of a shard: that it is missing, its wrong length, or the tensors whose
  // checksums do not match. One line each, with the file's name; empty if the shard is intact.
  std::vector<std::string> damage_of(const StoredFile& file) const;

  // Throws Error, naming the tensor, unless the checkpoint holds every piece completely and its
  // tensor has the same shape.
  void check_pieces(std::span<const TensorPiece> pieces) const;
  // Fills the pieces; reads only the ranges that they share with stored pieces. Several threads may
  // read.
  void read(std::span<const TensorPiece> pieces);

 private:
  struct Place {
    size_t shard;
    const StoredPiece* piece;
  };

  const InputFile& open_shard(size_t shard);

  std::filesystem::path folder_;
  std::string manifest_text_;
  Manifest manifest_;
  std::map<TensorKey, std::vector<Place>> places_;
  std::mutex opening_;
  std::vector<std::unique_ptr<InputFile>> open_shards_;
};

}  // namespace switchyard
