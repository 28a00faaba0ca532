#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "layers/decoding/decode_config.h"
#include "layers/decoding/kv_cache.h"

namespace switchyard {

// Which projections a method hashes with.
enum class HashProjections { none, learned, random };

// What the selector of one layer is made from. The cache decides its shape alone, and need not
// outlive it; the projections must.
struct SelectorInputs {
  const DecodeConfig& config;
  const KvCacheLayer& cache;
  ConstTensorView hash_weight;  // [local kv heads, head_dim, bits] f32; empty without projections
};

// A setting of the method, as reports name it.
using MethodSetting = std::pair<std::string_view, std::variant<int64_t, bool>>;

// One way to decode. A new one is a selector in files of its own, a DecodeMethod and a row.
struct DecodeMethodRow {
  DecodeMethod method;
  HashProjections projections;
  std::unique_ptr<KeySelector> (*make)(const SelectorInputs&);  // null: attends to all keys
  std::vector<MethodSetting> (*settings)(const DecodeConfig&);
};

// In the order of the enumeration.
std::span<const DecodeMethodRow> decode_methods();
const DecodeMethodRow& row_of(DecodeMethod method);

}  // namespace switchyard
