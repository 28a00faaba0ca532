// Plans made on the device of the tests equal the CPU's, and their lists are consistent.
#include "kernels/moe/exchange_plan.h"

#include <gtest/gtest.h>

#include <bit>
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
  int64_t chunks = 1;
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

// Chunks of different sizes, the first of which has no tokens if there are several.
std::vector<int64_t> first_tokens_of(const PlanCase& c) {
  std::vector<int64_t> first_tokens;
  for (int64_t i = 0; i <= c.chunks; ++i) {
    first_tokens.push_back(c.chunks == 1 ? i * c.tokens : c.tokens * (i / 2) / (c.chunks / 2));
  }
  return first_tokens;
}

// The lists of one plan, in tensors of their own.
struct Sends {
  explicit Sends(const PlanCase& c)
      : counts({c.ranks, c.chunks, 1 + c.local_experts}, DType::i64),
        row_of_slot({c.tokens * c.top_k}, DType::i32),
        assignment_of_slot(row_of_slot.shape(), DType::i32),
        assignments({c.tokens * c.top_k, kAssignmentValues}, DType::i32) {}
  SendPlan plan() { return {counts, row_of_slot, assignment_of_slot, assignments}; }
  int64_t sum(bool rows) const {
    int64_t total = 0;
    const auto values = to_vector<int64_t>(counts);
    for (size_t i = 0; i < values.size(); ++i) {
      if ((static_cast<int64_t>(i) % counts.shape()[2] == 0) == rows) total += values[i];
    }
    return total;
  }
  Tensor counts, row_of_slot, assignment_of_slot, assignments;
};

class ExchangePlanTest : public testing::TestWithParam<PlanCase> {
 protected:
  void SetUp() override {
    plan_sends(stream_, workspace_, dispatch_idx_, weights_, first_tokens_,
               GetParam().local_experts, GetParam().deduplicate, sends_.plan());
    cpu::plan_sends(cpu_, cpu_workspace_, dispatch_idx_, weights_, first_tokens_,
                    GetParam().local_experts, GetParam().deduplicate, expected_.plan());
  }

  // Messages that this rank sends, in the order of chunk, then rank. Sent to this rank they are as
  // good as any others; then the ranks are those of their sources.
  struct Message {
    int64_t chunk, rank, first_row, rows, first_assignment;
    std::vector<int64_t> of_experts;

    int64_t assignments() const {
      return std::accumulate(of_experts.begin(), of_experts.end(), int64_t{0});
    }
  };
  std::vector<Message> messages() {
    const int64_t row_size = 1 + GetParam().local_experts;
    const auto counts = to_vector<int64_t>(expected_.counts);
    std::vector<Message> all;
    int64_t row = 0, assignment = 0;
    for (int64_t chunk = 0; chunk < GetParam().chunks; ++chunk) {
      for (int64_t rank = 0; rank < GetParam().ranks; ++rank) {
        const int64_t* of_message = counts.data() + (rank * GetParam().chunks + chunk) * row_size;
        all.push_back(
            {chunk, rank, row, of_message[0], assignment, {of_message + 1, of_message + row_size}});
        row += all.back().rows;
        assignment += all.back().assignments();
      }
    }
    return all;
  }

  Tensor make_weights() const {
    std::vector<float> values;
    for (int64_t i = 0; i < GetParam().tokens * GetParam().top_k; ++i) {
      values.push_back(0.5f + static_cast<float>(i));
    }
    return make_tensor<float>({GetParam().tokens, GetParam().top_k}, values);
  }

  Stream stream_;
  Workspace workspace_;
  switchyard::Stream cpu_;
  switchyard::Workspace cpu_workspace_;
  const Tensor dispatch_idx_ = random_dispatch(GetParam()), weights_ = make_weights();
  const std::vector<int64_t> first_tokens_ = first_tokens_of(GetParam());
  Sends sends_{GetParam()}, expected_{GetParam()};
};

std::vector<int32_t> first_of(Tensor& tensor, int64_t n) {
  return to_vector<int32_t>(tensor.view().rows(0, n));
}

TEST_P(ExchangePlanTest, SendsAreThoseOfTheCpu) {
  ASSERT_EQ(to_vector<int64_t>(sends_.counts), to_vector<int64_t>(expected_.counts));
  const int64_t assignments = expected_.sum(false);
  EXPECT_EQ(to_vector<int32_t>(sends_.row_of_slot), to_vector<int32_t>(expected_.row_of_slot));
  EXPECT_EQ(to_vector<int32_t>(sends_.assignment_of_slot),
            to_vector<int32_t>(expected_.assignment_of_slot));
  EXPECT_EQ(first_of(sends_.assignments, assignments),
            first_of(expected_.assignments, assignments));
}

// Without anybody to tell, the rows are the same.
TEST_P(ExchangePlanTest, AssignmentsMayBeLeftOut) {
  Sends rows_only(GetParam());

  plan_sends(stream_, workspace_, dispatch_idx_, {}, first_tokens_, GetParam().local_experts,
             GetParam().deduplicate, {rows_only.counts, rows_only.row_of_slot, {}, {}});

  EXPECT_EQ(to_vector<int64_t>(rows_only.counts), to_vector<int64_t>(expected_.counts));
  EXPECT_EQ(to_vector<int32_t>(rows_only.row_of_slot), to_vector<int32_t>(expected_.row_of_slot));
}

// Goes through the slots by chunk, rank and token, and numbers rows and assignments itself.
TEST_P(ExchangePlanTest, MessagesFollowEachOtherByChunkAndRankWithTheirTokensInOrder) {
  const int64_t k = GetParam().top_k;
  const auto idx = to_vector<int32_t>(dispatch_idx_);
  const auto row_of_slot = to_vector<int32_t>(sends_.row_of_slot);
  const auto assignment_of_slot = to_vector<int32_t>(sends_.assignment_of_slot);
  const auto told = to_vector<int32_t>(sends_.assignments);
  int64_t row = 0, assignment = 0, dropped = 0;
  for (const Message& message : messages()) {
    ASSERT_EQ(row, message.first_row);
    ASSERT_EQ(assignment, message.first_assignment);
    const auto chunk = static_cast<size_t>(message.chunk);
    int64_t last_token = -1;
    for (int64_t slot = first_tokens_[chunk] * k; slot < first_tokens_[chunk + 1] * k; ++slot) {
      const auto at = static_cast<size_t>(slot);
      if (idx[at] < 0 || idx[at] / GetParam().local_experts != message.rank) continue;
      const bool opens = !GetParam().deduplicate || last_token != slot / k;
      last_token = slot / k;
      ASSERT_EQ(row_of_slot[at], opens ? row : -1);
      row += opens;
      ASSERT_EQ(assignment_of_slot[at], assignment);
      const int32_t* values = told.data() + kAssignmentValues * assignment++;
      EXPECT_EQ(values[0], row - 1 - message.first_row);
      EXPECT_EQ(values[1], idx[at] % GetParam().local_experts);
      EXPECT_EQ(std::bit_cast<float>(values[2]), 0.5f + static_cast<float>(slot));
    }
  }
  for (size_t slot = 0; slot < idx.size(); ++slot) {
    if (idx[slot] >= 0) continue;
    ++dropped;
    EXPECT_EQ(row_of_slot[slot], -1);
    EXPECT_EQ(assignment_of_slot[slot], -1);
  }
  EXPECT_EQ(assignment + dropped, std::ssize(idx));
}

// Places the assignments by chunk and expert in the order of their arrival.
TEST_P(ExchangePlanTest, ExpertRowsAreInTheOrderOfChunkExpertSourceAndToken) {
  const int64_t count = expected_.sum(false), rows = expected_.sum(true);
  Tensor offsets({rows + 1}, DType::i32);
  Tensor places({count}, DType::i32), weights({count}, DType::f32);

  plan_arrivals(stream_, expected_.assignments.view().rows(0, count), expected_.counts,
                {offsets, places, weights});

  const auto told = to_vector<int32_t>(expected_.assignments);
  std::vector<int32_t> expected_offsets, expected_places(static_cast<size_t>(count));
  std::vector<float> expected_weights;
  for (int64_t chunk = 0; chunk < GetParam().chunks; ++chunk) {
    for (int64_t expert = 0; expert < GetParam().local_experts; ++expert) {
      for (const Message& m : messages()) {
        if (m.chunk != chunk) continue;
        for (int64_t i = m.first_assignment; i < m.first_assignment + m.assignments(); ++i) {
          const int32_t* values = told.data() + kAssignmentValues * i;
          if (values[1] != expert) continue;
          expected_places[static_cast<size_t>(i)] = static_cast<int32_t>(expected_weights.size());
          expected_weights.push_back(std::bit_cast<float>(values[2]));
        }
      }
    }
  }
  for (const Message& m : messages()) {
    for (int64_t i = m.first_assignment; i < m.first_assignment + m.assignments(); ++i) {
      const int32_t* values = told.data() + kAssignmentValues * i;
      if (m.first_row + values[0] == std::ssize(expected_offsets)) {
        expected_offsets.push_back(static_cast<int32_t>(i));
      }
    }
  }
  expected_offsets.push_back(static_cast<int32_t>(count));
  EXPECT_EQ(to_vector<int32_t>(offsets), expected_offsets);
  EXPECT_EQ(to_vector<int32_t>(places), expected_places);
  EXPECT_EQ(to_vector<float>(weights), expected_weights);
}

// A relayed row has the experts of the token that it was sent for, as far as they are the rank's,
// in the order of their slots; each assignment knows its place among them.
TEST_P(ExchangePlanTest, RelayedRowsHaveTheExpertsAndWeightsOfTheirTokens) {
  const int64_t count = expected_.sum(false), rows = expected_.sum(true), k = GetParam().top_k;
  Tensor idx({rows, k}, DType::i32), slots({count}, DType::i32);
  Tensor weights = test::random_tensor({rows, k}, 1);  // What was there before is overwritten.

  plan_relay(stream_, expected_.assignments.view().rows(0, count), expected_.counts,
             {idx, weights, slots});

  const auto routed = to_vector<int32_t>(dispatch_idx_);
  const auto row_of_slot = to_vector<int32_t>(expected_.row_of_slot);
  std::vector<int64_t> source(static_cast<size_t>(rows));  // token of each row
  for (size_t slot = 0; slot < row_of_slot.size(); ++slot) {
    if (row_of_slot[slot] < 0) continue;
    source[static_cast<size_t>(row_of_slot[slot])] = static_cast<int64_t>(slot) / k;
  }
  std::vector<int32_t> expected(static_cast<size_t>(rows * k), -1), expected_slots;
  std::vector<float> expected_weights(expected.size(), 0.0f);
  std::vector<bool> sent(routed.size());  // without deduplication a row has the next slot only
  for (const Message& m : messages()) {
    for (int64_t row = m.first_row; row < m.first_row + m.rows; ++row) {
      auto next = static_cast<size_t>(row * k);
      const auto first = static_cast<size_t>(source[static_cast<size_t>(row)] * k);
      for (size_t s = first; s < first + static_cast<size_t>(k); ++s) {
        const int32_t expert = routed[s];
        if (expert < 0 || expert / GetParam().local_experts != m.rank || sent[s]) continue;
        sent[s] = true;
        expected_slots.push_back(static_cast<int32_t>(next));
        expected_weights[next] = 0.5f + static_cast<float>(s);
        expected[next++] = static_cast<int32_t>(expert % GetParam().local_experts);
        if (!GetParam().deduplicate) break;
      }
    }
  }
  EXPECT_EQ(to_vector<int32_t>(idx), expected);
  EXPECT_EQ(to_vector<float>(weights), expected_weights);
  EXPECT_EQ(to_vector<int32_t>(slots), expected_slots);
}

// The larger cases have more than one block per chunk.
INSTANTIATE_TEST_SUITE_P(
    Cases, ExchangePlanTest,
    testing::Values(PlanCase{1, 1, 1, 1, false, 0.0}, PlanCase{33, 3, 1, 8, false, 0.0},
                    PlanCase{257, 4, 4, 2, true, 0.0}, PlanCase{257, 4, 4, 2, false, 0.2},
                    PlanCase{100, 6, 2, 16, true, 0.3}, PlanCase{31, 2, 8, 1, true, 0.0},
                    PlanCase{5, 2, 3, 2, true, 1.0}, PlanCase{0, 2, 2, 2, true, 0.0},
                    PlanCase{257, 4, 4, 2, true, 0.1, 4}, PlanCase{1100, 3, 4, 3, false, 0.1, 2},
                    PlanCase{1100, 3, 2, 4, true, 0.0}, PlanCase{300, 2, 40, 1, false, 0.1, 4},
                    PlanCase{3, 2, 2, 2, true, 0.0, 6}, PlanCase{0, 2, 2, 2, true, 0.0, 2}));

TEST(ExchangePlan, ChunksThatDoNotAddUpAreRefused) {
  switchyard::Stream stream;
  switchyard::Workspace workspace;
  const PlanCase c{4, 1, 2, 1, true, 0.0, 2};
  const Tensor idx = random_dispatch(c), weights({4, 1}, DType::f32);
  Sends sends(c);
  const std::vector<int64_t> first_tokens = {0, 2, 3};

  EXPECT_THROW(plan_sends(stream, workspace, idx, weights, first_tokens, 1, true, sends.plan()),
               Error);
}

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
