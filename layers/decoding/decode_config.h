#pragma once

#include <cstdint>
#include <vector>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

// How decoding chooses the keys that a new query attends to. A method ranks them; the budget says
// how many of the best are read, by exact attention. Queries that share a key/value head share its
// keys. A method's row of `decode_methods` (decode_methods.h) describes it.
enum class DecodeMethod {
  dense,
  hata,
  exact_topk,
  random_hash,
  quest,
  loki,
  streaming,
  magicpig,
  h2o,
  snapkv
};
SWITCHYARD_ENUM_NAMES(DecodeMethod, dense, hata, exact_topk, random_hash, quest, loki, streaming,
                      magicpig, h2o, snapkv)

// All methods but dense, in the order of `decode_methods`.
std::vector<DecodeMethod> choosing_methods();

struct DecodeConfig {
  DecodeMethod method = DecodeMethod::dense;
  double budget = 0.015625;      // of keys: a number from 1 on, a share of all below 1
  int64_t sink = 0, recent = 0;  // numbers of first and newest keys that are always read
  bool key_norm = false;         // hash methods: cosine estimate times the key's length
  int64_t page_size = 16;        // quest
  int64_t channels = 32;         // loki; at most head_dim
  int64_t streaming_sink = 4;    // streaming: number of first keys
  // magicpig: bits of a table's buckets, number of tables, and numbers of the prompt's first and
  // last keys that are outside the tables
  int magicpig_bits = 10;
  int64_t magicpig_tables = 150, magicpig_sink = 4, magicpig_local = 64;
  // snapkv: last queries of the prompt that vote, and positions over which votes are pooled
  int64_t snapkv_window = 16, snapkv_kernel = 5;
};

}  // namespace switchyard
