#include "layers/decoding/decode_methods.h"

#include "layers/decoding/exact_selector.h"
#include "layers/decoding/h2o_selector.h"
#include "layers/decoding/hash_selector.h"
#include "layers/decoding/loki_selector.h"
#include "layers/decoding/magicpig_selector.h"
#include "layers/decoding/quest_selector.h"
#include "layers/decoding/snapkv_selector.h"
#include "layers/decoding/streaming_selector.h"

namespace switchyard {
namespace {

template <class Selector>
std::unique_ptr<KeySelector> make(const SelectorInputs& in) {
  return std::make_unique<Selector>(in.config, in.cache);
}
std::unique_ptr<KeySelector> make_hash(const SelectorInputs& in) {
  return std::make_unique<HashSelector>(in.config, in.hash, in.cache);
}
std::unique_ptr<KeySelector> make_magicpig(const SelectorInputs& in) {
  return std::make_unique<MagicPigSelector>(in.config, in.seed, in.cache);
}

using Settings = std::vector<MethodSetting>;
Settings no_settings(const DecodeConfig&) { return {}; }
Settings hash_settings(const DecodeConfig& c) { return {{"key_norm", c.key_norm}}; }
Settings quest_settings(const DecodeConfig& c) { return {{"page", c.page_size}}; }
Settings loki_settings(const DecodeConfig& c) { return {{"channels", c.channels}}; }
Settings streaming_settings(const DecodeConfig& c) { return {{"sink", c.streaming_sink}}; }
Settings magicpig_settings(const DecodeConfig& c) {
  return {{"table_bits", int64_t{c.magicpig_bits}},
          {"tables", c.magicpig_tables},
          {"sink", c.magicpig_sink},
          {"local", c.magicpig_local}};
}
Settings snapkv_settings(const DecodeConfig& c) {
  return {{"window", c.snapkv_window}, {"kernel", c.snapkv_kernel}};
}

int64_t all_queries(const DecodeConfig&) { return kAllQueries; }
int64_t snapkv_window(const DecodeConfig& c) { return c.snapkv_window; }

using enum DecodeMethod;
using enum HashProjections;

constexpr DecodeMethodRow kRows[] = {
    {dense, none, nullptr, no_settings},
    {hata, learned, make_hash, hash_settings},
    {exact_topk, none, make<ExactSelector>, no_settings},
    {random_hash, random, make_hash, hash_settings},
    {quest, none, make<QuestSelector>, quest_settings},
    {loki, none, make<LokiSelector>, loki_settings},
    {streaming, none, make<StreamingSelector>, streaming_settings},
    {magicpig, none, make_magicpig, magicpig_settings, Choice::sampling},
    {h2o, none, make<H2oSelector>, no_settings, Choice::evicting, all_queries},
    {snapkv, none, make<SnapKvSelector>, snapkv_settings, Choice::evicting, snapkv_window},
};

}  // namespace

std::span<const DecodeMethodRow> decode_methods() { return kRows; }

const DecodeMethodRow& row_of(DecodeMethod method) { return kRows[static_cast<size_t>(method)]; }

std::vector<DecodeMethod> choosing_methods() {
  std::vector<DecodeMethod> methods;
  for (const DecodeMethodRow& row : kRows) {
    if (row.make) methods.push_back(row.method);
  }
  return methods;
}

}  // namespace switchyard
