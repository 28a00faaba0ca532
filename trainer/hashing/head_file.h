#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "trainer/hashing/head_training.h"

namespace switchyard {

// The file that keeps the result of one head until hash_weights.h5 is written, so that a killed
// training does not learn the head again:
//   /weight  [head_dim, bits] f32
//   /losses  [records, 4] f64         similarity, balance, decorrelation, orthogonality
//   /recall, /attention_mass, /best_mass  [2, budgets] f64: learned, random; if measured
// An attribute holds a hash of all that decides the result. The file gets its name only when whole.
// Throws Error if the weight is not finite; an earlier file of the head then stays.
void save_head(const std::filesystem::path& path, const std::string& key, const HeadResult& result);

// Empty unless there is an intact file with this key. Any other file stays until a head is saved in
// its place. Throws Error if the system refuses to read it, because it may be intact.
std::optional<HeadResult> load_head(const std::filesystem::path& path, const std::string& key);

}  // namespace switchyard
