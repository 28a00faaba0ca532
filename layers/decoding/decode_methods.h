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

// The inputs from which the selector of one layer is made. It takes only its shape from the cache,
// which need not outlive it; the projections must.
struct SelectorInputs {
  const DecodeConfig& config;
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
};

// In the order of the enumeration.
std::span<const DecodeMethodRow> decode_methods();
const DecodeMethodRow& row_of(DecodeMethod method);

}  // namespace switchyard
