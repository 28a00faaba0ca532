#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "trainer/hashing/head_training.h"

namespace switchyard {

// The file that keeps the result of one head until hash_weights.h5 is written, so that a killed
// training does not learn the head again:
//   /hash_weight, /query_weight  [1, head_dim, columns] f32; the second with planes
//   /threshold  [1, columns] f32; with planes
//   /losses     [records, 5] f64: ranking, similarity, balance, decorrelation, orthogonality
//   /quality    [projections, 3, budgets] f64: recall, attention mass, best mass; if measured
// Attributes: `key`, a hash of all that decides the result; `key_planes`; if measured, `held_out`,
// the names of the projections, and `queries`. The file gets its name only when whole.
// Throws Error if the weight is not finite; an earlier file of the head then stays.
void save_head(const std::filesystem::path& path, const std::string& key, const HeadResult& result);

// Empty unless there is an intact file with this key. Any other file stays until a head is saved in
// its place. Throws Error if the system refuses to read it, because it may be intact.
std::optional<HeadResult> load_head(const std::filesystem::path& path, const std::string& key);

}  // namespace switchyard
