#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/decode/hash_encode.h"
#include "layers/decoding/decode_config.h"
#include "layers/decoding/kv_cache.h"

namespace switchyard {

// The projections with which a method hashes.
enum class HashProjections { none, learned, random };

// On what a method's choice depends besides the query, the cached keys and the call's budget.
enum class Choice {
  anew,      // on nothing
  evicting,  // on its earlier choices: keys leave for good. A selector is called once per query,
             // and two budgets need two selectors
  sampling,  // not even on the budget: on random numbers, and as many keys are chosen as they say
};

// The inputs from which the selector of one layer is made. It takes only its shape from the cache,
// which need not outlive it; the projections must.
struct SelectorInputs {
  const DecodeConfig& config;
  uint64_t seed;  // of random numbers that the selector draws itself
  const KvCacheLayer& cache;
  HashProjection hash;  // of this rank's heads; empty without projections
};

// A setting of the method, as reports name it.
using MethodSetting = std::pair<std::string_view, std::variant<int64_t, bool>>;

// One way to decode. A new one needs a selector in files of its own, a DecodeMethod and a row.
struct DecodeMethodRow {
  DecodeMethod method;
  HashProjections projections;
  std::unique_ptr<KeySelector> (*make)(const SelectorInputs&);  // null: attends to all keys
  std::vector<MethodSetting> (*settings)(const DecodeConfig&);
  Choice choice = Choice::anew;
  // The prompt's last queries whose attention the selector asks for; null: none.
  int64_t (*prompt_queries)(const DecodeConfig&) = nullptr;
};

// In the order of the enumeration.
std::span<const DecodeMethodRow> decode_methods();
const DecodeMethodRow& row_of(DecodeMethod method);

}  // namespace switchyard
