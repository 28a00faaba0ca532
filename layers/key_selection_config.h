#pragma once

#include <cstdint>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

// How decoding chooses the keys that a new query attends to. A method ranks them; the budget says
// how many of the best are read, by exact attention. Queries that share a key/value head share its
// keys.
enum class AttentionMethod {
  dense,        // all of them
  hata,         // smallest Hamming distance of learned codes, summed over the group
  exact_topk,   // greatest sum over the group of <q, k>: reads every key
  random_hash,  // hata with a random orthogonal projection
  quest,        // pages of keys, by an upper bound of <q, k> in them (arXiv 2406.10774)
  loki,         // <q, k> along the leading principal axes of the keys (arXiv 2406.02542)
  streaming,    // the first keys and the newest ones (StreamingLLM, arXiv 2309.17453)
};
SWITCHYARD_ENUM_NAMES(AttentionMethod, dense, hata, exact_topk, random_hash, quest, loki, streaming)

struct KeySelectionConfig {
  AttentionMethod attention = AttentionMethod::dense;
  double budget = 0.015625;      // keys: from 1 their number, below 1 their share
  int64_t sink = 0, recent = 0;  // the first and the newest keys that are always among them
  bool key_norm = false;         // hash methods: cosine estimate times the key's length
  int64_t page_size = 16;        // quest
  int64_t channels = 32;         // loki; at most head_dim
  int64_t streaming_sink = 4;    // streaming: its first keys
};

}  // namespace switchyard
