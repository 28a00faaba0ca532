#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "kernels/basic/random.h"
#include "kernels/runtime/integers.h"
#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/data/data_loader.h"

namespace switchyard {

// Where a sequence's queries lie: one in each of as many parts of [from seq_len, seq_len).
// Rotations turn queries and keys with their positions, so projections serve the lengths of context
// that their queries had.
struct QuerySpread {
  double from = 0.5;  // the share of a sequence before its first query
  // Parts whose ends have equal ratios, so that every octave of lengths has as many queries,
  // instead of parts of equal length, where the longest contexts have most.
  bool by_octave = false;
};

// The queries and keys of a frozen model that are kept, and their files: sequences
// [0, num_sequences) in the loader's order, `sequences_per_block` per pass and file.
struct QueryKeySet {
  std::filesystem::path folder;
  std::string name;  // of the set; the names of its files begin with it
  std::string key;   // hash of all that decides the values; a file with another key is made anew
  uint64_t seed = 0;
  int64_t num_sequences = 0;
  int64_t sequences_per_block = 1;
  int64_t queries_per_sequence = 1;
  QuerySpread spread{};
  int first_layer = 0;  // earlier layers are not kept

  int64_t num_blocks() const { return ceil_div(num_sequences, sequences_per_block); }
  std::filesystem::path path_of(int64_t block) const;
};

// The positions of a sequence's queries, rising, the same for all heads and layers: one is drawn
// from each of the `queries_per_sequence` parts of the set's spread. A function of the set's seed
// and name and the sequence's number.
std::vector<int64_t> query_positions(const QueryKeySet& set, int64_t sequence, int64_t seq_len);

// Runs the sequences through the model and writes the missing blocks. The dp ranks run dp blocks
// at a time, always the same ones together: an expert's rows come from all ranks of its ep group,
// and products round by how many rows there are. So where one block is missing, the whole group
// runs again, and a collection that goes on gives the bits of one that was never stopped. The bits
// do not depend on dp, but on tp and ep, which sum otherwise.
// One layer of one block is in memory at a time. The loader has batches of `sequences_per_block`
// sequences and a single dp rank. Returns the number of blocks written. Collective over the world.
//   stops  the same on every rank; if it returns true, no further block is computed
int64_t collect_query_keys(
    Stream& stream, Transformer& model, const DistributedContext& dist, DataLoader& loader,
    const QueryKeySet& set, const std::function<bool()>& stops = [] { return false; });

}  // namespace switchyard
