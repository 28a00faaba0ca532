// Dispatch and combine on all group sizes against what one process computes.
#include "parallel/expert_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <tuple>

#include "mpi/mpi_test.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::test_mpi;

constexpr int kExperts = 8;
constexpr int64_t kWidth = 5;

// dispatch_idx of rank r; experts of a token differ, -1 is dropped.
using Routing = std::function<std::vector<std::vector<int32_t>>(int rank)>;

struct NamedRouting {
  std::string name;
  int64_t top_k;
  Routing of;
};

std::vector<NamedRouting> routings() {
  const auto random = [](int rank) {
    std::mt19937 engine(static_cast<uint32_t>(rank + 1));
    std::vector<std::vector<int32_t>> tokens;
    for (int t = 0; t < 7 + 3 * rank; ++t) {
      std::vector<int32_t> experts(kExperts);
      std::iota(experts.begin(), experts.end(), 0);
      std::shuffle(experts.begin(), experts.end(), engine);
      experts.resize(3);
      if (t % 4 == 1) experts[static_cast<size_t>(t % 3)] = -1;
      tokens.push_back(experts);
    }
    return tokens;
  };
  const auto all_to = [](std::vector<int32_t> experts) {
    return [experts](int) { return std::vector<std::vector<int32_t>>(6, experts); };
  };
  return {{"Random", 3, random},
          {"AllTokensToOneExpert", 1, all_to({5})},
          {"FewerBusyExpertsThanRanks", 2, all_to({0, 1})},
          {"EverythingDropped", 2, all_to({-1, -1})},
          {"OneTokenInAll", 2,
           [](int rank) {
             return rank == 0 ? std::vector<std::vector<int32_t>>{{7, 2}}
                              : std::vector<std::vector<int32_t>>{};
           }},
          {"SomeRanksWithoutTokens", 1, [](int rank) {
             return std::vector<std::vector<int32_t>>(static_cast<size_t>(rank % 2 * 4), {3});
           }}};
}

float token_value(int rank, int64_t token, int64_t column) {
  return std::sin(static_cast<float>(rank * 1000 + token * 10 + column));
}
// Experts are linear here: expert e multiplies by this.
float factor(int64_t expert) { return 0.5f + static_cast<float>(expert); }

// Routing, whether rows are deduplicated, and chunks.
class ExchangeTest : public testing::TestWithParam<std::tuple<size_t, bool, int>> {
 protected:
  ExchangeTest()
      : routing_(routings()[std::get<0>(GetParam())]),
        exchange_(test_mpi().world(), stream_.device(), kExperts,
                  {.deduplicate = std::get<1>(GetParam()), .chunks = std::get<2>(GetParam())}),
        routed_(routing_.of(rank())),
        tokens_(static_cast<int64_t>(routed_.size())),
        idx_({tokens_, routing_.top_k}, DType::i32),
        x_({tokens_, kWidth}, DType::f32) {
    for (int64_t t = 0; t < tokens_; ++t) {
      std::copy(routed_[static_cast<size_t>(t)].begin(), routed_[static_cast<size_t>(t)].end(),
                idx_.data<int32_t>() + t * routing_.top_k);
      for (int64_t c = 0; c < kWidth; ++c) {
        x_.data<float>()[t * kWidth + c] = token_value(rank(), t, c);
      }
    }
    plan_ = exchange_.begin_plan(stream_, workspace_, idx_);
    exchange_.finish_plan(stream_, workspace_, plan_);
  }

  // All chunks' rows and weights, as the experts get them. All are under way at a time.
  struct Dispatched {
    TensorView rows;     // [expert_rows, kWidth]
    TensorView weights;  // [expert_rows]; empty without weights
  };
  Dispatched dispatch(std::vector<ChunkTransfer>& transfers, ConstTensorView weights = {}) {
    Dispatched result{workspace_.take({plan_.expert_rows(), kWidth}, DType::f32), {}};
    if (weights.rank() > 0) result.weights = workspace_.take({plan_.expert_rows()}, DType::f32);
    for (ChunkTransfer& t : transfers) {
      t.start_dispatch(stream_, t.chunk().token_rows(x_.view()), t.chunk().token_rows(weights));
    }
    for (ChunkTransfer& t : transfers) {
      t.finish_dispatch(stream_, t.chunk().of_experts(result.rows),
                        t.chunk().of_experts(result.weights));
    }
    return result;
  }
  Dispatched dispatch() {
    auto transfers = new_transfers();
    return dispatch(transfers);
  }
  void combine(std::vector<ChunkTransfer>& transfers, ConstTensorView y, TensorView out,
               ConstTensorView expert_weights = {}, TensorView weights = {}) {
    for (ChunkTransfer& t : transfers) {
      t.start_combine(stream_, t.chunk().of_experts(y), t.chunk().of_experts(expert_weights));
    }
    for (ChunkTransfer& t : transfers) {
      t.finish_combine(stream_, t.chunk().token_rows(out), t.chunk().token_rows(weights));
    }
  }
  std::vector<ChunkTransfer> new_transfers() {
    return exchange_.transfers(workspace_, plan_, kWidth, DType::f32);
  }

  int rank() { return test_mpi().rank(); }
  int64_t first_expert() { return rank() * exchange_.num_local_experts(); }
  // Of the expert rows of this rank.
  int64_t expert_of(int64_t row) {
    for (const ExchangeChunk& chunk : plan_.chunks) {
      const int64_t within = row - chunk.first_expert_row;
      for (size_t e = 0; e + 1 < chunk.expert_offsets.size(); ++e) {
        if (within < chunk.expert_offsets[e + 1]) return first_expert() + static_cast<int64_t>(e);
      }
    }
    return -1;
  }
  // Of the tokens of a rank, those of one chunk: the first and the one behind the last.
  std::pair<size_t, size_t> tokens_of(size_t chunk, size_t tokens) const {
    const size_t chunks = plan_.chunks.size();
    return {tokens * chunk / chunks, tokens * (chunk + 1) / chunks};
  }

  NamedRouting routing_;
  Stream stream_;
  Workspace workspace_;
  ExpertExchange exchange_;
  std::vector<std::vector<int32_t>> routed_;
  int64_t tokens_;
  Tensor idx_, x_;
  ExchangePlan plan_;
};

TEST_P(ExchangeTest, RowsArriveByChunkThenExpertThenSourceRankThenToken) {
  const TensorView rows = dispatch().rows;

  int64_t row = 0;
  for (size_t c = 0; c < plan_.chunks.size(); ++c) {
    ASSERT_EQ(plan_.chunks[c].first_expert_row, row);
    for (int64_t e = 0; e < exchange_.num_local_experts(); ++e) {
      ASSERT_EQ(plan_.chunks[c].expert_offsets[static_cast<size_t>(e)],
                row - plan_.chunks[c].first_expert_row);
      for (int source = 0; source < test_mpi().world_size(); ++source) {
        const auto routed = routing_.of(source);
        const auto [begin, end] = tokens_of(c, routed.size());
        for (size_t t = begin; t < end; ++t) {
          for (const int32_t expert : routed[t]) {
            if (expert != first_expert() + e) continue;
            ASSERT_LT(row, plan_.expert_rows());
            EXPECT_EQ(rows.data<float>()[row * kWidth + 1],
                      token_value(source, static_cast<int64_t>(t), 1));
            ++row;
          }
        }
      }
    }
  }
  EXPECT_EQ(row, plan_.expert_rows());
}

TEST_P(ExchangeTest, CombineSumsTheExpertsOfEachTokenAndRepeatsBitForBit) {
  const auto run = [&] {
    auto transfers = new_transfers();
    const TensorView rows = dispatch(transfers).rows;
    for (int64_t r = 0; r < plan_.expert_rows(); ++r) {
      for (int64_t c = 0; c < kWidth; ++c) {
        rows.data<float>()[r * kWidth + c] *= factor(expert_of(r));
      }
    }
    Tensor out({tokens_, kWidth}, DType::f32);
    combine(transfers, rows, out);
    return out;
  };

  const Tensor out = run();

  for (int64_t t = 0; t < tokens_; ++t) {
    double total = 0.0;
    for (const int32_t expert : routed_[static_cast<size_t>(t)]) {
      if (expert >= 0) total += factor(expert);
    }
    EXPECT_NEAR(out.data<float>()[t * kWidth + 4], total * token_value(rank(), t, 4), 1e-5);
  }
  EXPECT_EQ(test::to_floats(run()), test::to_floats(out));
}

// The backward passes: each is the other's transpose.
TEST_P(ExchangeTest, DispatchAndCombineAreTransposes) {
  auto transfers = new_transfers();
  const TensorView rows = dispatch(transfers).rows;
  const Tensor y =
      test::random_tensor({plan_.expert_rows(), kWidth}, 9 + static_cast<uint64_t>(rank()));
  Tensor back({tokens_, kWidth}, DType::f32);

  combine(transfers, y.view(), back);

  std::vector<double> products = {test::inner_product(rows, y), test::inner_product(x_, back)};
  test_mpi().world().all_reduce(stream_, view_of(std::span(products)), ReduceOp::sum);
  EXPECT_NEAR(products[0], products[1], 1e-4);
}

TEST_P(ExchangeTest, WeightsFollowTheirRowsAndComeBackToTheirSlots) {
  Tensor weights({tokens_, routing_.top_k}, DType::f32);
  for (int64_t i = 0; i < weights.num_elements(); ++i) {
    const int32_t expert = idx_.data<int32_t>()[i];
    weights.data<float>()[i] =
        static_cast<float>(1000 * rank() + i) + 0.01f * static_cast<float>(expert);
  }

  auto transfers = new_transfers();
  const auto [rows, there] = dispatch(transfers, weights.view());
  Tensor back(weights.shape(), DType::f32), out(x_.shape(), DType::f32);
  combine(transfers, rows, out, there, back);

  for (int64_t r = 0; r < plan_.expert_rows(); ++r) {
    const float value = there.data<float>()[r];
    EXPECT_NEAR(value - std::floor(value), 0.01f * static_cast<float>(expert_of(r)), 2e-3);
  }
  for (int64_t i = 0; i < weights.num_elements(); ++i) {
    const bool dropped = idx_.data<int32_t>()[i] < 0;
    EXPECT_EQ(back.data<float>()[i], dropped ? 0.0f : weights.data<float>()[i]);
  }
}

TEST_P(ExchangeTest, CountsTheRowsThatLeaveTheRank) {
  exchange_.take_traffic();
  dispatch();
  const ExchangeTraffic traffic = exchange_.take_traffic();

  int64_t rows = 0;
  for (const std::vector<int32_t>& experts : routed_) {
    std::vector<int> ranks;
    for (const int32_t expert : experts) {
      if (expert >= 0) ranks.push_back(expert / exchange_.num_local_experts());
    }
    std::sort(ranks.begin(), ranks.end());
    if (std::get<1>(GetParam())) ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    rows += static_cast<int64_t>(ranks.size()) - std::count(ranks.begin(), ranks.end(), rank());
  }
  EXPECT_EQ(traffic.row_bytes, rows * kWidth * 4);
}

INSTANTIATE_TEST_SUITE_P(Routings, ExchangeTest,
                         testing::Combine(testing::Range<size_t>(0, 6), testing::Bool(),
                                          testing::Values(1, 3)),
                         [](const auto& tested) {
                           return routings()[std::get<0>(tested.param)].name +
                                  (std::get<1>(tested.param) ? "Deduplicated" : "") +
                                  (std::get<2>(tested.param) > 1 ? "InChunks" : "");
                         });

}  // namespace
}  // namespace switchyard
