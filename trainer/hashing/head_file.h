#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "trainer/hashing/head_training.h"

namespace switchyard {

// The result of one head on its way to hash_weights.h5, so that a training that was killed does
// not learn it again:
//   /weight  [head_dim, bits] f32
//   /losses  [records, 4] f64         similarity, balance, decorrelation, orthogonality
//   /recall, /attention_mass, /best_mass  [2, budgets] f64: learned, random; where measured
// An attribute holds a key of all that decides it. The file has its name only when it is whole.
void save_head(const std::filesystem::path& path, const std::string& key, const HeadResult& result);

// Nothing unless there is an intact file with this key; one of another key or torn is removed.
std::optional<HeadResult> load_head(const std::filesystem::path& path, const std::string& key);

}  // namespace switchyard
