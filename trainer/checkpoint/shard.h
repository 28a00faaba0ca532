#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/tensor_piece.h"

namespace switchyard {

std::string shard_name(int rank);  // "shard_00000.h5"

// The bytes of a shard of these pieces, or a little more.
int64_t shard_bytes(std::span<const TensorPiece> pieces);

// Writes one rank's pieces as /KIND/NAME, one-dimensional f32, each with its geometry and checksum
// in attributes. On return the operating system has the file, and sync_file flushes it to the disk.
// Throws Error on failure, such as a full disk.
StoredFile write_shard(const std::filesystem::path& path, std::span<const TensorPiece> pieces);

// Writes the virtual datasets /KIND/NAME that show whole tensors to any HDF5 reader. The shards lie
// in the same folder.
StoredFile write_model_file(const std::filesystem::path& path, const Manifest& manifest);

}  // namespace switchyard
