#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "layers/decoding/decode_methods.h"
#include "layers/decoding/decode_setup.h"
#include "tests/support/test_tensors.h"

namespace switchyard {

constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kLength = 50, kMaxLen = 60, kDim = 16;

// One layer's cache of random keys, a selector beside it, and a query. All keys but the newest are
// those of a prompt, whose attention is random.
struct Bench {
  explicit Bench(const DecodeConfig& config)
      : setup{.config = config, .dense_layers = 0, .hash_weights = {}, .seed = 5},
        lengths({kBatch}, DType::i32) {
    setup.hash_weights.emplace_back().keys = test::random_tensor({kKvHeads, kDim, 64}, 7);
    cache.k = test::random_tensor({kBatch, kKvHeads, kMaxLen, kDim}, 1);
    cache.v = test::random_tensor({kBatch, kKvHeads, kMaxLen, kDim}, 2);
    q = test::random_tensor({kBatch, kHeads, kDim}, 3);
    std::fill_n(lengths.data<int32_t>(), kBatch, static_cast<int32_t>(kLength));
    for (const int64_t queries : {kAllQueries, config.snapkv_window}) {
      keep_prompt_attention(cache, queries);
      Tensor& received = cache.prompt_attention.back().received;
      const Tensor random =
          test::random_tensor(received.shape(), 4 + cache.prompt_attention.size());
      for (int64_t i = 0; i < received.num_elements(); ++i) {
        const bool in_prompt = i % kMaxLen < kLength - 1;
        received.data<float>()[i] = in_prompt ? std::abs(random.data<float>()[i]) : 0.0f;
      }
    }
    selector = make_key_selector(setup, /*layer=*/0, cache);
    selector->append(stream, workspace, keys(0, kLength - 1), 0);
  }

  // Positions [first, first + count) of the cache.
  Tensor keys(int64_t first, int64_t count) {
    Tensor part({kBatch, kKvHeads, count, kDim}, DType::f32);
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
      std::copy_n(cache.k.data<float>() + (row * kMaxLen + first) * kDim, count * kDim,
                  part.data<float>() + row * count * kDim);
    }
    return part;
  }

  // The chosen positions per (sequence, kv head), ascending, with the configuration's budget.
  std::vector<std::vector<int32_t>> select() { return select_within(setup.config.budget); }

  std::vector<std::vector<int32_t>> select_within(double budget) {
    return sets_of(select(kLength, budget));
  }

  // The choice of a query whose key is the last of `length`.
  SelectedKeys select(int64_t length, double budget) {
    std::fill_n(lengths.data<int32_t>(), kBatch, static_cast<int32_t>(length));
    const Tensor k = keys(length - 1, 1);
    return selector->select(stream, workspace, q, k,
                            {.k = cache.k,
                             .v = cache.v,
                             .lengths = lengths,
                             .length = length,
                             .prompt = cache.prompt_attention},
                            budget_tokens(budget, length));
  }

  static std::vector<std::vector<int32_t>> sets_of(const SelectedKeys& chosen) {
    const auto indices = test::to_vector<int32_t>(chosen.indices);
    const auto counts = test::to_vector<int32_t>(chosen.counts);
    std::vector<std::vector<int32_t>> sets;
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
      const auto begin = indices.begin() + row * chosen.indices.dim(2);
      auto& set = sets.emplace_back(begin, begin + counts[static_cast<size_t>(row / kKvHeads)]);
      std::ranges::sort(set);
    }
    return sets;
  }

  // Sum over the group of <q, k_p>, in double.
  double score(int64_t row, int64_t p) const {
    double sum = 0.0;
    constexpr int64_t kGroup = kHeads / kKvHeads;
    for (int64_t g = 0; g < kGroup; ++g) {
      for (int64_t i = 0; i < kDim; ++i) {
        sum += static_cast<double>(q.data<float>()[(row * kGroup + g) * kDim + i]) *
               cache.k.data<float>()[(row * kMaxLen + p) * kDim + i];
      }
    }
    return sum;
  }

  Stream stream;
  Workspace saved, workspace;
  DecodeSetup setup;
  KvCacheLayer cache;
  Tensor q, lengths;
  std::unique_ptr<KeySelector> selector;
};

inline DecodeConfig config_of(DecodeMethod method, double budget) {
  DecodeConfig config;
  config.method = method;
  config.budget = budget;
  config.page_size = 8;
  config.channels = 6;
  config.magicpig_bits = 4;
  config.magicpig_tables = 8;
  config.magicpig_local = 2;
  config.snapkv_window = 3;
  return config;
}

}  // namespace switchyard
