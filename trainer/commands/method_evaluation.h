#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/run_config.h"
#include "trainer/hashing/evaluate_hash.h"
#include "trainer/training/session.h"

// What `eval-hash` and `eval-tasks` share: the methods that they measure, and the files of results.
namespace switchyard {

// The methods of hash.evaluation with all bits and settings. Collective over the world; throws
// CollectiveError with the remedy if weights are missing or do not fit.
//   context      the most tokens that will be decoded
//   fingerprint  of the checkpoint that the session's model has
std::vector<HashCandidate> load_candidates(MpiRuntime& mpi, const RunConfig& config,
                                           int64_t context, Session& session,
                                           const std::string& fingerprint);

// The candidate's name in tables.
std::string name_of(const HashCandidate& candidate);

// Throws Error unless a file of results may be written there: there is none, or it holds earlier
// results of that format.
void require_evaluation(const std::filesystem::path& path, std::string_view format,
                        std::string_view command);

// Rank 0 writes the file, whole or not at all. Collective over the world.
void write_evaluation(MpiRuntime& mpi, const std::filesystem::path& path,
                      const nlohmann::json& content);

}  // namespace switchyard
