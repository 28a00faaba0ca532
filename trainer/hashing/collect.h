#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kernels/basic/random.h"
#include "kernels/runtime/integers.h"
#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/data/data_loader.h"

namespace switchyard {

// Which queries and keys of a frozen model to keep, and where: sequences [0, num_sequences) in the
// loader's order, `sequences_per_block` to a pass and a file.
struct QueryKeySet {
  std::filesystem::path folder;
  std::string name;  // of the set: begins the names of its files
  std::string key;   // of all that decides the values; files of another key are made anew
  uint64_t seed = 0;
  int64_t num_sequences = 0;
  int64_t sequences_per_block = 1;
  int first_layer = 0;  // earlier layers are not kept

  int64_t num_blocks() const { return ceil_div(num_sequences, sequences_per_block); }
  std::filesystem::path path_of(int64_t block) const;
};

// The position whose query stands for a sequence: uniform in [seq_len / 2, seq_len), the same for
// all heads and layers. A function of the set's seed and name and the sequence's number.
int64_t query_position(const QueryKeySet& set, int64_t sequence, int64_t seq_len);

// Runs the sequences through the model and writes the blocks that are not there yet. dp ranks share
// the blocks; a block's values do not depend on who computes it, but those of another tp or ep sum
// in another order. In memory there is one layer of one block at a time. The loader's batches are
// of `sequences_per_block` sequences, on one dp rank. Collective over the world. Returns how many
// blocks were computed.
int64_t collect_query_keys(Stream& stream, Transformer& model, const DistributedContext& dist,
                           DataLoader& loader, const QueryKeySet& set);

}  // namespace switchyard
