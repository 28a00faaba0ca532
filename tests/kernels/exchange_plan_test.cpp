// Plans made on the device of the tests equal the CPU's, and their lists are consistent.
#include "kernels/moe/exchange_plan.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "kernels/moe/permute.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::Stream;
using test::Tensor;
using test::to_vector;
using test::Workspace;

struct PlanCase {
  int64_t tokens, top_k, ranks, local_experts;
  bool deduplicate;
  double dropped;  // share of the slots
};

// The experts of a token are distinct; some slots are dropped.
Tensor random_dispatch(const PlanCase& c) {
  std::mt19937 engine(7);
  std::vector<int32_t> experts(static_cast<size_t>(c.ranks * c.local_experts));
  std::iota(experts.begin(), experts.end(), 0);
  std::vector<int32_t> idx;
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::shuffle(experts.begin(), experts.end(), engine);
    for (int64_t s = 0; s < c.top_k; ++s) {
      const bool drop = std::uniform_real_distribution<>()(engine) < c.dropped;
      idx.push_back(drop ? -1 : experts[static_cast<size_t>(s)]);
    }
  }
  return make_tensor<int32_t>({c.tokens, c.top_k}, idx);
}

// The lists of one plan, in tensors of their own.
struct Sends {
  explicit Sends(const PlanCase& c)
      : counts({c.ranks, 1 + c.local_experts}, DType::i64),
        source({c.tokens * c.top_k}, DType::i32),
        token_offsets({c.tokens + 1}, DType::i32),
        token_members(source.shape(), DType::i32),
        assignment_of_slot(source.shape(), DType::i32),
        assignments({c.tokens * c.top_k, 2}, DType::i32) {}
  SendPlan plan() {
    return {counts, source, token_offsets, token_members, assignment_of_slot, assignments};
  }
  int64_t sum(bool rows) const {
    int64_t total = 0;
    const auto values = to_vector<int64_t>(counts);
    for (size_t i = 0; i < values.size(); ++i) {
      if ((static_cast<int64_t>(i) % counts.shape()[1] == 0) == rows) total += values[i];
    }
    return total;
  }
  Tensor counts, source, token_offsets, token_members, assignment_of_slot, assignments;
};

class ExchangePlanTest : public testing::TestWithParam<PlanCase> {
 protected:
  void SetUp() override {
    plan_sends(stream_, workspace_, dispatch_idx_, GetParam().local_experts, GetParam().deduplicate,
               sends_.plan());
    cpu::plan_sends(cpu_, cpu_workspace_, dispatch_idx_, GetParam().local_experts,
                    GetParam().deduplicate, expected_.plan());
  }

  // What a rank knows of an arriving message. Here it is the one that this rank sends to all: any
  // well-formed message will do.
  struct Message {
    std::vector<int64_t> rank_rows, rank_assignments, expert_offsets;
  };
  Message message() {
    const int64_t row_size = 1 + GetParam().local_experts;
    const auto counts = to_vector<int64_t>(expected_.counts);
    Message m{{0}, {0}, std::vector<int64_t>(static_cast<size_t>(row_size), 0)};
    for (int64_t r = 0; r < GetParam().ranks; ++r) {
      const int64_t* of_rank = counts.data() + r * row_size;
      m.rank_rows.push_back(m.rank_rows.back() + of_rank[0]);
      m.rank_assignments.push_back(m.rank_assignments.back() +
                                   std::accumulate(of_rank + 1, of_rank + row_size, int64_t{0}));
      for (int64_t e = 1; e < row_size; ++e) m.expert_offsets[static_cast<size_t>(e)] += of_rank[e];
    }
    std::partial_sum(m.expert_offsets.begin(), m.expert_offsets.end(), m.expert_offsets.begin());
    return m;
  }

  Stream stream_;
  Workspace workspace_;
  switchyard::Stream cpu_;
  switchyard::Workspace cpu_workspace_;
  const Tensor dispatch_idx_ = random_dispatch(GetParam());
  Sends sends_{GetParam()}, expected_{GetParam()};
};

TEST_P(ExchangePlanTest, SendsAreThoseOfTheCpu) {
  ASSERT_EQ(to_vector<int64_t>(sends_.counts), to_vector<int64_t>(expected_.counts));
  const int64_t rows = expected_.sum(true), assignments = expected_.sum(false);
  const auto used = [](Tensor& tensor, int64_t n) {
    return to_vector<int32_t>(tensor.view().rows(0, n));
  };
  EXPECT_EQ(used(sends_.source, rows), used(expected_.source, rows));
  EXPECT_EQ(to_vector<int32_t>(sends_.token_offsets), to_vector<int32_t>(expected_.token_offsets));
  EXPECT_EQ(used(sends_.token_members, rows), used(expected_.token_members, rows));
  EXPECT_EQ(to_vector<int32_t>(sends_.assignment_of_slot),
            to_vector<int32_t>(expected_.assignment_of_slot));
  EXPECT_EQ(used(sends_.assignments, assignments), used(expected_.assignments, assignments));
}

// Every assignment's row holds its token, and every token lists each of its rows once.
TEST_P(ExchangePlanTest, RowsLeadBackToTheirTokens) {
  const int64_t k = GetParam().top_k;
  const auto idx = to_vector<int32_t>(dispatch_idx_);
  const auto place = to_vector<int32_t>(sends_.assignment_of_slot);
  const auto pairs = to_vector<int32_t>(sends_.assignments);
  const auto source = to_vector<int32_t>(sends_.source);
  const auto counts = to_vector<int64_t>(sends_.counts);
  std::vector<int64_t> first_row(static_cast<size_t>(GetParam().ranks), 0);
  for (size_t r = 1; r < first_row.size(); ++r) {
    first_row[r] =
        first_row[r - 1] + counts[(r - 1) * static_cast<size_t>(1 + GetParam().local_experts)];
  }
  for (size_t slot = 0; slot < idx.size(); ++slot) {
    if (idx[slot] < 0) {
      EXPECT_EQ(place[slot], -1);
      continue;
    }
    const auto at = static_cast<size_t>(place[slot]) * 2;
    const int64_t rank = idx[slot] / GetParam().local_experts;
    EXPECT_EQ(pairs[at + 1], idx[slot] % GetParam().local_experts);
    const auto row = static_cast<size_t>(first_row[static_cast<size_t>(rank)] + pairs[at]);
    EXPECT_EQ(source[row], static_cast<int64_t>(slot) / k);
  }
}

TEST_P(ExchangePlanTest, ArrivalsAreThoseOfTheCpu) {
  const Message message = this->message();
  const auto& [rank_rows, rank_assignments, expert_offsets] = message;
  const int64_t count = rank_assignments.back(), rows = rank_rows.back();
  struct Lists {
    Tensor source, offsets, places;
    ArrivalPlan plan() { return {source, offsets, places}; }
  };
  const auto lists = [&] {
    return Lists{Tensor({count}, DType::i32), Tensor({rows + 1}, DType::i32),
                 Tensor({count}, DType::i32)};
  };
  Lists mine = lists(), expected = lists();
  const ConstTensorView arrived = expected_.assignments.view().rows(0, count);

  plan_arrivals(stream_, workspace_, arrived, rank_rows, rank_assignments, expert_offsets,
                mine.plan());
  cpu::plan_arrivals(cpu_, cpu_workspace_, arrived, rank_rows, rank_assignments, expert_offsets,
                     expected.plan());

  EXPECT_EQ(to_vector<int32_t>(mine.source), to_vector<int32_t>(expected.source));
  EXPECT_EQ(to_vector<int32_t>(mine.offsets), to_vector<int32_t>(expected.offsets));
  EXPECT_EQ(to_vector<int32_t>(mine.places), to_vector<int32_t>(expected.places));
}

// A relayed row has the experts of the token that it was sent for, as far as they are the rank's,
// in the order of their slots; each assignment knows its place among them.
TEST_P(ExchangePlanTest, RelayedRowsHaveTheExpertsOfTheirTokens) {
  const Message message = this->message();
  const int64_t count = message.rank_assignments.back(), rows = message.rank_rows.back();
  const int64_t k = GetParam().top_k, local_experts = GetParam().local_experts;
  Tensor idx({rows, k}, DType::i32), slots({count}, DType::i32);

  plan_relay(stream_, workspace_, expected_.assignments.view().rows(0, count), message.rank_rows,
             message.rank_assignments, {idx, slots});

  const auto routed = to_vector<int32_t>(dispatch_idx_);
  const auto source = to_vector<int32_t>(expected_.source);
  std::vector<int32_t> expected(static_cast<size_t>(rows * k), -1);
  std::vector<int32_t> expected_slots;
  int64_t row = 0;
  std::vector<bool> sent(routed.size());  // without deduplication a row has the next slot only
  for (int64_t r = 0; r < GetParam().ranks; ++r) {
    for (; row < message.rank_rows[static_cast<size_t>(r + 1)]; ++row) {
      int64_t next = row * k;
      for (int64_t s = source[static_cast<size_t>(row)] * k, end = s + k; s < end; ++s) {
        const int32_t expert = routed[static_cast<size_t>(s)];
        if (expert < 0 || expert / local_experts != r || sent[static_cast<size_t>(s)]) continue;
        sent[static_cast<size_t>(s)] = true;
        expected_slots.push_back(static_cast<int32_t>(next));
        expected[static_cast<size_t>(next++)] = static_cast<int32_t>(expert % local_experts);
        if (!GetParam().deduplicate) break;
      }
    }
  }
  EXPECT_EQ(to_vector<int32_t>(idx), expected);
  EXPECT_EQ(to_vector<int32_t>(slots), expected_slots);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ExchangePlanTest,
    testing::Values(PlanCase{1, 1, 1, 1, false, 0.0}, PlanCase{33, 3, 1, 8, false, 0.0},
                    PlanCase{257, 4, 4, 2, true, 0.0}, PlanCase{257, 4, 4, 2, false, 0.2},
                    PlanCase{100, 6, 2, 16, true, 0.3}, PlanCase{31, 2, 8, 1, true, 0.0},
                    PlanCase{5, 2, 3, 2, true, 1.0}, PlanCase{0, 2, 2, 2, true, 0.0}));

TEST(ValuesTest, AreGatheredAndScatteredUnlessTheIndexIsNone) {
  Stream stream;
  const Tensor x = make_tensor<float>({4}, {10, 11, 12, 13});
  const Tensor index = make_tensor<int32_t>({4}, {3, -1, 0, 2});
  Tensor gathered({4}, DType::f32), scattered = make_tensor<float>({4}, {-1, -2, -3, -4});

  gather_values(stream, x, index, gathered);
  scatter_values(stream, x, index, scattered);

  EXPECT_EQ(to_vector<float>(gathered), (std::vector<float>{13, 0, 10, 12}));
  EXPECT_EQ(to_vector<float>(scattered), (std::vector<float>{12, -2, 13, 10}));
}

TEST(ValuesTest, AnIndexMayBeReplacedByWhatItNames) {
  Stream stream;
  const Tensor x = make_tensor<int32_t>({3}, {7, 8, 9});
  Tensor index = make_tensor<int32_t>({4}, {2, 2, 0, 1});

  gather_values(stream, x, index, index);

  EXPECT_EQ(to_vector<int32_t>(index), (std::vector<int32_t>{9, 9, 7, 8}));
}

}  // namespace
}  // namespace switchyard
