// Dispatch and combine on all group sizes against the results of one process.
#include "parallel/expert_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <tuple>

#include "mpi/mpi_test.h"
#include "parallel/distributed_context.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::test_mpi;

constexpr int kExperts = 8;
constexpr int64_t kWidth = 5;

// Makes the dispatch_idx of a rank. The experts of a token differ; -1 is a dropped slot.
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
// Experts are linear here: expert e multiplies by factor(e).
float factor(int64_t expert) { return 0.5f + static_cast<float>(expert); }

using Transfers = std::vector<std::unique_ptr<ChunkTransfer>>;

// How rows are deduplicated on hosts of this many ranks each.
struct ByHost {
  std::string name;
  Deduplicate deduplicate;
  int ranks_per_host;
};
const ByHost kWays[] = {{"", Deduplicate::none, 2},
                        {"Deduplicated", Deduplicate::rank, 2},
                        {"DeduplicatedByPairs", Deduplicate::host, 2},
                        {"DeduplicatedByFours", Deduplicate::host, 4}};

// All ranks form one ep group.
DistributedContext context(const ByHost& way) {
  const int world = test_mpi().world_size();
  HostOptions hosts{.groups = way.deduplicate == Deduplicate::host};
  for (int i = 0; i < world; ++i) hosts.hosts.push_back(i / way.ranks_per_host);
  return {test_mpi(), ParallelLayout(world, 1, world), Device{}, hosts};
}

// Index of the routing, index of the way, number of chunks.
class ExchangeTest : public testing::TestWithParam<std::tuple<size_t, size_t, int>> {
 protected:
  ExchangeTest()
      : routing_(routings()[std::get<0>(GetParam())]),
        way_(kWays[std::get<1>(GetParam())]),
        dist_(context(way_)),
        exchange_(make_expert_exchange(
            dist_.exchange_groups(), stream_.device(), kExperts,
            {.deduplicate = way_.deduplicate, .chunks = std::get<2>(GetParam())})),
        routed_(routing_.of(rank())),
        tokens_(static_cast<int64_t>(routed_.size())),
        idx_({tokens_, routing_.top_k}, DType::i32),
        weights_({tokens_, routing_.top_k}, DType::f32),
        x_({tokens_, kWidth}, DType::f32) {
    for (int64_t t = 0; t < tokens_; ++t) {
      std::copy(routed_[static_cast<size_t>(t)].begin(), routed_[static_cast<size_t>(t)].end(),
                idx_.data<int32_t>() + t * routing_.top_k);
      for (int64_t c = 0; c < kWidth; ++c) {
        x_.data<float>()[t * kWidth + c] = token_value(rank(), t, c);
      }
    }
    for (int64_t i = 0; i < weights_.num_elements(); ++i) {
      const int32_t expert = idx_.data<int32_t>()[i];
      weights_.data<float>()[i] =
          static_cast<float>(1000 * rank() + i) + 0.01f * static_cast<float>(expert);
    }
    begin();
  }

  void begin() {
    plan_ = exchange_->begin_plan(stream_, lists_, scratch_, idx_, weights_);
    plan_->finish(stream_);
  }
  // The rows of each chunk as the experts get them. All chunks are in flight at once.
  std::vector<ExpertRows> arrive(const Transfers& transfers) {
    std::vector<ExpertRows> rows;
    for (const auto& transfer : transfers) rows.push_back(transfer->arrive(stream_, scratch_));
    return rows;
  }
  Transfers dispatch() { return plan_->dispatch(stream_, scratch_, x_); }

  int rank() { return test_mpi().rank(); }
  int64_t num_local_experts() { return kExperts / test_mpi().world_size(); }
  int64_t first_expert() { return rank() * num_local_experts(); }
  int64_t expert_of(const ExpertRows& rows, int64_t row) {
    for (size_t e = 0; e + 1 < rows.offsets.size(); ++e) {
      if (row < rows.offsets[e + 1]) return first_expert() + static_cast<int64_t>(e);
    }
    return -1;
  }
  // The range [first, end) of a rank's tokens that one chunk holds.
  static std::pair<size_t, size_t> tokens_of(size_t chunk, size_t chunks, size_t tokens) {
    return {tokens * chunk / chunks, tokens * (chunk + 1) / chunks};
  }

  // The ranks in the order in which the rows that they send lie at an expert: with relays, by their
  // place in their host.
  std::vector<int> sources() const {
    const int world = test_mpi().world_size();
    std::vector<int> ranks(static_cast<size_t>(world));
    std::iota(ranks.begin(), ranks.end(), 0);
    if (!dist_.exchange_groups().between_hosts) return ranks;
    std::stable_sort(ranks.begin(), ranks.end(), [&](int a, int b) {
      return a % way_.ranks_per_host < b % way_.ranks_per_host;
    });
    return ranks;
  }
  // The number of different values of place(expert) among a token's experts, other than `own`.
  template <class Place>
  static int64_t others(const std::vector<int32_t>& experts, int64_t own, const Place& place) {
    std::set<int64_t> places;
    for (const int32_t expert : experts) {
      if (expert >= 0) places.insert(place(expert));
    }
    return static_cast<int64_t>(places.size() - places.count(own));
  }

  NamedRouting routing_;
  ByHost way_;
  DistributedContext dist_;
  Stream stream_;
  Workspace lists_, scratch_;
  std::unique_ptr<ExpertExchange> exchange_;
  std::vector<std::vector<int32_t>> routed_;
  int64_t tokens_;
  Tensor idx_, weights_, x_;
  std::unique_ptr<ExchangePlan> plan_;
};

TEST_P(ExchangeTest, RowsArriveByChunkThenExpertThenSourceThenToken) {
  const Transfers transfers = dispatch();
  const std::vector<ExpertRows> arrived = arrive(transfers);

  // One rank uses one chunk, whatever the options say.
  ASSERT_EQ(arrived.size(),
            test_mpi().world_size() == 1 ? 1u : static_cast<size_t>(std::get<2>(GetParam())));
  for (size_t c = 0; c < arrived.size(); ++c) {
    const ExpertRows& rows = arrived[c];
    int64_t row = 0;
    for (int64_t e = 0; e < num_local_experts(); ++e) {
      ASSERT_EQ(rows.offsets[static_cast<size_t>(e)], row);
      for (const int source : sources()) {
        const auto routed = routing_.of(source);
        const auto [begin, end] = tokens_of(c, arrived.size(), routed.size());
        for (size_t t = begin; t < end; ++t) {
          for (const int32_t expert : routed[t]) {
            if (expert != first_expert() + e) continue;
            ASSERT_LT(row, rows.x.dim(0));
            EXPECT_EQ(rows.x.data<float>()[row * kWidth + 1],
                      token_value(source, static_cast<int64_t>(t), 1));
            ++row;
          }
        }
      }
    }
    EXPECT_EQ(rows.offsets.back(), row);
    EXPECT_EQ(rows.x.dim(0), row);
  }
}

TEST_P(ExchangeTest, CombineSumsTheExpertsOfEachTokenAndRepeatsBitForBit) {
  const auto run = [&] {
    const Transfers transfers = dispatch();
    for (const auto& transfer : transfers) {
      const ExpertRows rows = transfer->arrive(stream_, scratch_);
      for (int64_t r = 0; r < rows.x.dim(0); ++r) {
        for (int64_t c = 0; c < kWidth; ++c) {
          rows.x.data<float>()[r * kWidth + c] *= factor(expert_of(rows, r));
        }
      }
      transfer->leave(stream_, rows.x);
    }
    Tensor out({tokens_, kWidth}, DType::f32);
    for (const auto& transfer : transfers) {
      transfer->finish(stream_, transfer->token_rows(out.view()));
    }
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
  const Transfers transfers = dispatch();
  const std::vector<ExpertRows> arrived = arrive(transfers);
  std::vector<Tensor> ys;
  double there = 0.0;
  for (size_t c = 0; c < arrived.size(); ++c) {
    ys.push_back(
        test::random_tensor(arrived[c].x.shape(), 9 + 10 * c + static_cast<size_t>(rank())));
    there += test::inner_product(arrived[c].x, ys[c]);
  }
  Tensor back({tokens_, kWidth}, DType::f32);

  for (size_t c = 0; c < arrived.size(); ++c) transfers[c]->leave(stream_, ys[c]);
  for (const auto& transfer : transfers) {
    transfer->finish(stream_, transfer->token_rows(back.view()));
  }

  std::vector<double> products = {there, test::inner_product(x_, back)};
  test_mpi().world().all_reduce(stream_, view_of(std::span(products)), ReduceOp::sum);
  EXPECT_NEAR(products[0], products[1], 1e-4);
}

TEST_P(ExchangeTest, WeightsFollowTheirRowsAndValuesComeBackToTheirSlots) {
  const Transfers transfers = dispatch();
  const std::vector<ExpertRows> arrived = arrive(transfers);
  Tensor values({plan_->num_expert_rows()}, DType::f32);
  int64_t next = 0;
  for (const ExpertRows& rows : arrived) {
    ASSERT_EQ(rows.weights.num_elements(), rows.x.dim(0));
    for (int64_t r = 0; r < rows.x.dim(0); ++r) {
      const float weight = rows.weights.data<float>()[r];
      EXPECT_NEAR(weight - std::floor(weight), 0.01f * static_cast<float>(expert_of(rows, r)),
                  2e-3);
      values.data<float>()[next++] = -2.0f * weight;  // What comes back is not what was sent.
    }
  }
  ASSERT_EQ(next, values.num_elements());
  Tensor back(weights_.shape(), DType::f32);

  plan_->return_values(stream_, scratch_, values)->finish(stream_, back);

  for (int64_t i = 0; i < weights_.num_elements(); ++i) {
    const bool dropped = idx_.data<int32_t>()[i] < 0;
    EXPECT_EQ(back.data<float>()[i], dropped ? 0.0f : -2.0f * weights_.data<float>()[i]);
  }
}

// Another pass over the same tokens, as recomputation makes it: the scratch memory of the first one
// has been used for other things.
TEST_P(ExchangeTest, AKeptPlanMovesTheRowsAgainWithoutPlanning) {
  const std::vector<ExpertRows> first = arrive(dispatch());
  exchange_->take_figures();
  scratch_ = Workspace();

  const std::vector<ExpertRows> again = arrive(dispatch());

  EXPECT_EQ(exchange_->take_figures().metadata_bytes, 0);
  ASSERT_EQ(again.size(), first.size());
  for (size_t c = 0; c < again.size(); ++c) {
    for (int64_t e = 0; e <= num_local_experts(); ++e) {
      EXPECT_EQ(again[c].offsets[static_cast<size_t>(e)], first[c].offsets[static_cast<size_t>(e)]);
    }
    for (int64_t r = 0; r < again[c].x.dim(0); ++r) {
      const float weight = again[c].weights.data<float>()[r];
      const int source = static_cast<int>(weight) / 1000;
      const int64_t token = static_cast<int64_t>(weight) % 1000 / routing_.top_k;
      EXPECT_EQ(again[c].x.data<float>()[r * kWidth + 1], token_value(source, token, 1));
    }
  }
}

// With relays a row goes to each other host once, and inside a host once to each rank but its
// relay.
TEST_P(ExchangeTest, CountsTheRowsThatLeaveTheRank) {
  exchange_->take_figures();
  const Transfers transfers = dispatch();
  arrive(transfers);
  const ExchangeFigures figures = exchange_->take_figures();
  int64_t sums[] = {figures.row_bytes, figures.row_bytes_between_hosts};
  test_mpi().world().all_reduce(stream_, view_of(std::span<int64_t>(sums)), ReduceOp::sum);

  int64_t rows = 0, rows_between = 0;
  const auto rank_of = [&](int32_t expert) { return expert / num_local_experts(); };
  const auto host_of = [&](int32_t expert) { return rank_of(expert) / way_.ranks_per_host; };
  const bool relays = dist_.exchange_groups().between_hosts != nullptr;
  for (int source = 0; source < test_mpi().world_size(); ++source) {
    const int64_t host = source / way_.ranks_per_host, place = source % way_.ranks_per_host;
    for (const std::vector<int32_t>& experts : routing_.of(source)) {
      const int64_t other_ranks = others(experts, source, rank_of);
      if (relays) {
        rows_between += others(experts, host, host_of);
        // Of the ranks that hold its experts, those at the source's place are its relays.
        const int64_t ranks = others(experts, /*own=*/-1, rank_of);
        const int64_t own_place = others(experts, /*own=*/-1, [&](int32_t expert) {
          return rank_of(expert) % way_.ranks_per_host == place ? rank_of(expert) : -1;
        });
        rows += ranks - own_place;
        continue;
      }
      if (way_.deduplicate != Deduplicate::none) {
        rows += other_ranks;
        rows_between += others(experts, /*own=*/-1, [&](int32_t expert) {
          return host_of(expert) == host ? -1 : rank_of(expert);
        });
        continue;
      }
      for (const int32_t expert : experts) {
        rows += expert >= 0 && rank_of(expert) != source;
        rows_between += expert >= 0 && host_of(expert) != host;
      }
    }
  }
  if (relays) rows += rows_between;
  EXPECT_EQ(sums[0], rows * kWidth * 4);
  EXPECT_EQ(sums[1], rows_between * kWidth * 4);
}

TEST_P(ExchangeTest, TheNumberOfChunksMayChangeFromOnePlanToTheNext) {
  exchange_->set_chunks(5);
  begin();
  Tensor out({tokens_, kWidth}, DType::f32);

  const Transfers transfers = dispatch();
  const std::vector<ExpertRows> arrived = arrive(transfers);
  for (size_t c = 0; c < arrived.size(); ++c) transfers[c]->leave(stream_, arrived[c].x);
  for (const auto& transfer : transfers) {
    transfer->finish(stream_, transfer->token_rows(out.view()));
  }

  EXPECT_EQ(transfers.size(), test_mpi().world_size() == 1 ? 1u : 5u);
  for (int64_t t = 0; t < tokens_; ++t) {
    const auto& experts = routed_[static_cast<size_t>(t)];
    const auto kept = std::count_if(experts.begin(), experts.end(), [](int e) { return e >= 0; });
    EXPECT_NEAR(out.data<float>()[t * kWidth + 4],
                static_cast<float>(kept) * token_value(rank(), t, 4), 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Routings, ExchangeTest,
                         testing::Combine(testing::Range<size_t>(0, 6),
                                          testing::Range<size_t>(0, std::size(kWays)),
                                          testing::Values(1, 3)),
                         [](const auto& tested) {
                           return routings()[std::get<0>(tested.param)].name +
                                  kWays[std::get<1>(tested.param)].name +
                                  (std::get<2>(tested.param) > 1 ? "InChunks" : "");
                         });

}  // namespace
}  // namespace switchyard
