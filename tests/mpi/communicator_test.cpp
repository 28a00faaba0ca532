// The behaviour of every communicator, for a group of one rank, of all ranks, of neighbours and of
// ranks apart, on tensors of the device that SWITCHYARD_TEST_DEVICE names.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/enum_names.h"
#include "mpi/mpi_test.h"
#include "parallel/distributed_context.h"
#include "parallel/nccl_communicator.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::Tensor;
using test::test_mpi;

// nccl_self: NCCL's group of one rank, the only NCCL group that ranks on a shared device can have.
enum class Kind { self, world, neighbours, apart, nccl_self };
SWITCHYARD_ENUM_NAMES(Kind, self, world, neighbours, apart, nccl_self)

constexpr DType kAllDTypes[] = {DType::f32, DType::bf16, DType::f64, DType::i32,
                                DType::i64, DType::u16,  DType::u8};
constexpr ReduceOp kAllOps[] = {ReduceOp::sum, ReduceOp::max, ReduceOp::min};

// Sizes below and above that up to which all ranks reduce everything (16 KiB, so 2,048 to 8,192
// elements), and sizes of more than one block.
constexpr int64_t kSizes[] = {0, 1, 2, 33, 2049, 4096, 4097, 8193, 100003, (int64_t{1} << 18) + 5};

class CommunicatorTest : public testing::TestWithParam<Kind> {
 protected:
  CommunicatorTest()
      : dist_(
            test_mpi(),
            ParallelLayout(test_mpi().world_size(), test_mpi().world_size() >= 2 ? 2 : 1, /*ep=*/1),
            test::device()),
        alone_(make_self_communicator("alone")) {
    if (GetParam() == Kind::nccl_self) {
      auto host = make_self_communicator("alone");
      auto group = make_nccl_world(*host, test::device(), test_mpi().watchdog());
      nccl_alone_ = make_nccl_communicator(std::move(host), std::move(group));
    }
    for (int64_t i = 0; i < kPeriod; ++i) {
      values_.push_back(1000.0 * std::sin(static_cast<double>(i)));
    }
  }

  Communicator& group() {
    switch (GetParam()) {
      case Kind::self:
        return *alone_;
      case Kind::world:
        return dist_.world();
      case Kind::neighbours:
        return dist_.tp();
      case Kind::apart:
        return dist_.dp();
      case Kind::nccl_self:
        return *nccl_alone_;
    }
    fail("unknown group");
  }
  int size() { return group().size(); }
  int rank() { return group().rank(); }

  // Groups of one kind work at the same time. Their data differ, so that mixed-up messages show.
  int colour() const {
    switch (GetParam()) {
      case Kind::self:
      case Kind::nccl_self:
        return test_mpi().rank();
      case Kind::neighbours:
        return dist_.dp().rank();
      case Kind::apart:
        return dist_.tp().rank();
      default:
        return 0;
    }
  }

  // Differs by group, rank and place.
  uint8_t byte_of(int of_rank, size_t i) const {
    return static_cast<uint8_t>(31 * of_rank + 101 * colour() + 7 * static_cast<int>(i % kPeriod) +
                                1);
  }
  void fill_bytes(TensorView view, int of_rank) const {
    synchronize(view.device());
    auto* bytes = static_cast<uint8_t*>(view.raw());
    for (size_t i = 0; i < view.num_bytes(); ++i) bytes[i] = byte_of(of_rank, i);
  }
  void expect_bytes(ConstTensorView view, int of_rank) const {
    synchronize(view.device());
    const auto* bytes = static_cast<const uint8_t*>(view.raw());
    size_t right = 0;
    while (right < view.num_bytes() && bytes[right] == byte_of(of_rank, right)) ++right;
    EXPECT_EQ(right, view.num_bytes()) << to_string(view.dtype()) << " of rank " << of_rank;
  }

  // Inexact in every floating dtype, so that another order of summation gives other bits. The
  // values come from a table: the compiler could fuse a product computed here with the sum.
  template <class T>
  T element_of(int of_rank, int64_t i) const {
    const auto at = static_cast<size_t>((i + 113 * of_rank + 29 * colour()) % kPeriod);
    if constexpr (std::is_same_v<T, bfloat16>) {
      return bfloat16(static_cast<float>(values_[at]));
    } else {
      return static_cast<T>(values_[at]);
    }
  }
  template <class T>
  std::vector<T> elements_of(int of_rank, int64_t n) const {
    std::vector<T> elements;
    elements.reserve(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) elements.push_back(element_of<T>(of_rank, i));
    return elements;
  }

  // The ranks' elements [begin, begin + n), combined one rank after the other in Accumulator.
  template <class T, class Accumulator>
  std::vector<T> combined(int64_t begin, int64_t n, ReduceOp op) {
    std::vector<T> results;
    results.reserve(static_cast<size_t>(n));
    for (int64_t i = begin; i < begin + n; ++i) {
      auto total = static_cast<Accumulator>(element_of<T>(0, i));
      for (int r = 1; r < size(); ++r) {
        const auto value = static_cast<Accumulator>(element_of<T>(r, i));
        if (op == ReduceOp::sum) total += value;
        if (op == ReduceOp::max) total = std::max(total, value);
        if (op == ReduceOp::min) total = std::min(total, value);
      }
      results.push_back(T(total));
    }
    return results;
  }

  // NCCL chooses the order in which it sums large tensors.
  bool sums_in_rank_order(int64_t n, DType dtype, ReduceOp op) {
    constexpr size_t kOrderedBytes = 65536;
    return dist_.transport().find("NCCL") == std::string::npos || GetParam() == Kind::self ||
           op != ReduceOp::sum || dtype == DType::bf16 ||
           static_cast<size_t>(n) * size_of(dtype) <= kOrderedBytes;
  }

  template <class T>
  void expect_close(const T* values, const std::vector<T>& expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
      // Each rank adds a value of up to 1000 and one rounding error.
      const double bound = std::is_integral_v<T> ? 0.0
                           : sizeof(T) == 4      ? 1e-3 * size()
                                                 : 1e-11 * size();
      const double difference =
          std::abs(static_cast<double>(values[i]) - static_cast<double>(expected[i]));
      ASSERT_LE(difference, bound) << to_string(dtype_of<T>()) << " element " << i;
    }
  }

  template <class T>
  static void expect_same_bits(const T* values, const std::vector<T>& expected) {
    size_t i = 0;
    while (i < expected.size() && std::memcmp(&values[i], &expected[i], sizeof(T)) == 0) ++i;
    if (i == expected.size()) return;
    ADD_FAILURE() << to_string(dtype_of<T>()) << " element " << i << " of " << expected.size()
                  << " is " << static_cast<double>(values[i]) << ", not "
                  << static_cast<double>(expected[i]);
  }

  template <class T, class Accumulator = T>
  void expect_all_reduce(int64_t n, ReduceOp op) {
    Tensor data = test::make_tensor({n}, elements_of<T>(rank(), n));

    group().all_reduce(stream_, data, op);

    const std::vector<T> expected = combined<T, Accumulator>(0, n, op);
    sums_in_rank_order(n, data.dtype(), op) ? expect_same_bits(data.data<T>(), expected)
                                            : expect_close(data.data<T>(), expected);
  }

  template <class T, class Accumulator = T>
  void expect_reduce_scatter(int64_t n, bool in_place) {
    Tensor in = test::make_tensor({n * size()}, elements_of<T>(rank(), n * size()));
    Tensor apart({n}, dtype_of<T>());
    const TensorView out = in_place ? in.view().rows(rank() * n, n) : apart.view();

    group().start_reduce_scatter(stream_, in, out)->wait(stream_);

    synchronize(test::device());
    const std::vector<T> expected = combined<T, Accumulator>(rank() * n, n, ReduceOp::sum);
    sums_in_rank_order(n * size(), in.dtype(), ReduceOp::sum)
        ? expect_same_bits(out.data<T>(), expected)
        : expect_close(out.data<T>(), expected);
  }

  // Rank r sends count(r, s) rows of `width` to rank s.
  template <class Count>
  void expect_all_to_all_v(const Count& count, int64_t width, DType dtype) {
    std::vector<int64_t> send, receive;
    for (int r = 0; r < size(); ++r) {
      send.push_back(count(rank(), r));
      receive.push_back(count(r, rank()));
    }
    Tensor in({std::accumulate(send.begin(), send.end(), int64_t{0}), width}, dtype);
    Tensor out({std::accumulate(receive.begin(), receive.end(), int64_t{0}), width}, dtype);
    const auto tag = [&](int from, int to) { return from * size() + to; };
    int64_t row = 0;
    for (int to = 0; to < size(); row += send[static_cast<size_t>(to++)]) {
      fill_bytes(in.view().rows(row, send[static_cast<size_t>(to)]), tag(rank(), to));
    }

    group().all_to_all_v(stream_, in, send, out, receive);

    row = 0;
    for (int from = 0; from < size(); row += receive[static_cast<size_t>(from++)]) {
      expect_bytes(out.view().rows(row, receive[static_cast<size_t>(from)]), tag(from, rank()));
    }
  }

  static constexpr int64_t kPeriod = 1009;

  test::Stream stream_;
  DistributedContext dist_;
  std::unique_ptr<Communicator> alone_, nccl_alone_;
  std::vector<double> values_;
};

TEST_P(CommunicatorTest, AllReduceCombinesInTheOrderOfTheRanksBitForBit) {
  for (const int64_t n : kSizes) {
    for (const ReduceOp op : kAllOps) {
      expect_all_reduce<float>(n, op);
      expect_all_reduce<bfloat16, float>(n, op);
      expect_all_reduce<double>(n, op);
      expect_all_reduce<int32_t>(n, op);
      expect_all_reduce<int64_t>(n, op);
    }
  }
}

TEST_P(CommunicatorTest, ReduceScatterGivesASliceOfTheSumAlsoInPlace) {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, (int64_t{1} << 17) * 3 + 5}) {
    for (const bool in_place : {false, true}) {
      expect_reduce_scatter<float>(n, in_place);
      expect_reduce_scatter<bfloat16, float>(n, in_place);
      expect_reduce_scatter<double>(n, in_place);
    }
  }
}

TEST_P(CommunicatorTest, TheNumberOfThreadsDoesNotChangeASum) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(3);

  expect_all_reduce<float>((int64_t{1} << 19) + 5, ReduceOp::sum);
  expect_reduce_scatter<bfloat16, float>((int64_t{1} << 18) + 5, /*in_place=*/true);

  omp_set_num_threads(before);
}

TEST_P(CommunicatorTest, Bf16IsSummedInF32AndRoundedOnce) {
  for (const int64_t n : {int64_t{5}, int64_t{20000}}) {
    Tensor data({n}, DType::bf16);
    for (int64_t i = 0; i < n; ++i) {
      data.data<bfloat16>()[i] = bfloat16(rank() == 0 ? 256.0f : 1.0f);
    }

    group().all_reduce(stream_, data, ReduceOp::sum);

    // One by one in bf16, 256 + 1 would stay 256.
    const bfloat16 expected(256.0f + static_cast<float>(size() - 1));
    EXPECT_EQ(data.data<bfloat16>()[n - 1].bits, expected.bits);
  }
}

TEST_P(CommunicatorTest, I64IsExactBeyondDouble) {
  constexpr int64_t kLarge = (int64_t{1} << 58) + 1;
  int64_t sum = kLarge, highest = kLarge + rank();

  group().all_reduce(stream_, view_of(std::span(&sum, 1)), ReduceOp::sum);
  group().all_reduce(stream_, view_of(std::span(&highest, 1)), ReduceOp::max);

  EXPECT_EQ(sum, kLarge * size());
  EXPECT_EQ(highest, kLarge + size() - 1);
}

TEST_P(CommunicatorTest, NanSurvivesMaxAndMin) {
  for (const ReduceOp op : {ReduceOp::max, ReduceOp::min}) {
    for (const int64_t n : {int64_t{1}, int64_t{10000}}) {
      for (const int holder : {0, size() - 1}) {
        std::vector<float> values(static_cast<size_t>(n),
                                  rank() == holder ? NAN : static_cast<float>(rank()));
        group().all_reduce(stream_, view_of(std::span(values)), op);
        EXPECT_TRUE(std::isnan(values.back())) << "on rank " << holder;
      }
    }
  }
}

TEST_P(CommunicatorTest, BroadcastGivesTheDataOfAnyRoot) {
  for (const DType dtype : kAllDTypes) {
    for (const int64_t n : {0, 1, 33, 10007}) {
      for (const int root : {0, size() / 2, size() - 1}) {
        Tensor data({n}, dtype);
        fill_bytes(data, rank());

        group().broadcast(stream_, data, root);

        expect_bytes(data, root);
      }
    }
  }
}

TEST_P(CommunicatorTest, AllGatherJoinsInRankOrderAlsoInPlace) {
  for (const DType dtype : kAllDTypes) {
    for (const int64_t n : {0, 1, 33, 10007}) {
      Tensor in({n, 3}, dtype), apart({n * size(), 3}, dtype), whole({n * size(), 3}, dtype);
      fill_bytes(in, rank());
      const TensorView mine = whole.view().rows(rank() * n, n);
      fill_bytes(mine, rank());

      group().all_gather(stream_, in, apart);
      group().all_gather(stream_, mine, whole);

      for (int r = 0; r < size(); ++r) {
        expect_bytes(apart.view().rows(r * n, n), r);
        expect_bytes(whole.view().rows(r * n, n), r);
      }

      Tensor again({n * size(), 3}, dtype);
      const auto pending = group().start_all_gather(stream_, in, again);
      const auto in_place = group().start_all_gather(stream_, mine, whole);
      in_place->wait(stream_);
      pending->wait(stream_);
      for (int r = 0; r < size(); ++r) {
        expect_bytes(again.view().rows(r * n, n), r);
        expect_bytes(whole.view().rows(r * n, n), r);
      }
    }
  }
}

TEST_P(CommunicatorTest, AllToAllVMovesRaggedRowsOfAnyDtype) {
  // Some counts are zero, and all of them differ.
  const auto ragged = [](int from, int to) { return int64_t{3} * from + to; };
  for (const DType dtype : kAllDTypes) {
    for (const int64_t width : {1, 3, 33}) expect_all_to_all_v(ragged, width, dtype);
  }
}

TEST_P(CommunicatorTest, AllToAllVMovesNothingAllToOneAndManyRows) {
  const int last = size() - 1;
  expect_all_to_all_v([](int, int) { return int64_t{0}; }, 5, DType::bf16);
  expect_all_to_all_v([&](int, int to) { return int64_t{to == last ? 7 : 0}; }, 5, DType::bf16);
  expect_all_to_all_v([&](int from, int) { return int64_t{from == last ? 7 : 0}; }, 5, DType::u8);
  expect_all_to_all_v([](int from, int to) { return int64_t{20011} + 13 * from + to; }, 9,
                      DType::f32);
}

// The chunks of an expert exchange do the same: all start before the first is waited for.
TEST_P(CommunicatorTest, SeveralTransfersMayBeUnderWay) {
  constexpr int kTransfers = 4;
  constexpr int64_t kRows = 700, kWidth = 33;
  const std::vector<int64_t> each(static_cast<size_t>(size()), kRows);
  std::vector<Tensor> in, out;
  std::vector<std::unique_ptr<PendingCollective>> pending;
  for (int t = 0; t < kTransfers; ++t) {
    in.emplace_back(Shape{kRows * size(), kWidth}, DType::f32);
    out.emplace_back(Shape{kRows * size(), kWidth}, DType::f32);
    for (int to = 0; to < size(); ++to) {
      fill_bytes(in.back().view().rows(to * kRows, kRows), 17 * t + rank() * size() + to);
    }
  }

  for (size_t t = 0; t < kTransfers; ++t) {
    pending.push_back(group().start_all_to_all_v(stream_, in[t], each, out[t], each));
  }
  // The order of the waits differs from that of the starts.
  for (size_t t = kTransfers; t-- > 0;) pending[t]->wait(stream_);

  for (size_t t = 0; t < kTransfers; ++t) {
    for (int from = 0; from < size(); ++from) {
      expect_bytes(out[t].view().rows(from * kRows, kRows),
                   17 * static_cast<int>(t) + from * size() + rank());
    }
  }
}

// Their messages between two ranks differ in number of rows, width and dtype; some are empty.
TEST_P(CommunicatorTest, SeveralAllToAllsMayBeOneOperation) {
  const auto rows = [](int from, int to, int number) { return int64_t{3} * from + to + number; };
  const int64_t widths[] = {5, 1, 33};
  const DType dtypes[] = {DType::f32, DType::i32, DType::bf16};
  std::vector<Tensor> in, out;
  std::vector<std::vector<int64_t>> sent(3), received(3);
  std::vector<Communicator::AllToAll> exchanges;
  const auto tag = [&](int from, int to, int number) { return 17 * number + from * size() + to; };
  for (int i = 0; i < 3; ++i) {
    const auto at = static_cast<size_t>(i);
    for (int r = 0; r < size(); ++r) {
      sent[at].push_back(rows(rank(), r, i));
      received[at].push_back(rows(r, rank(), i));
    }
    const auto sum = [](const std::vector<int64_t>& counts) {
      return std::accumulate(counts.begin(), counts.end(), int64_t{0});
    };
    in.emplace_back(Shape{sum(sent[at]), widths[i]}, dtypes[i]);
    out.emplace_back(Shape{sum(received[at]), widths[i]}, dtypes[i]);
    int64_t row = 0;
    for (int to = 0; to < size(); row += rows(rank(), to++, i)) {
      fill_bytes(in[at].view().rows(row, rows(rank(), to, i)), tag(rank(), to, i));
    }
  }
  for (size_t i = 0; i < 3; ++i) exchanges.push_back({in[i], sent[i], out[i], received[i]});

  group().start_all_to_alls(stream_, exchanges)->wait(stream_);

  for (int i = 0; i < 3; ++i) {
    int64_t row = 0;
    for (int from = 0; from < size(); row += rows(from++, rank(), i)) {
      expect_bytes(out[static_cast<size_t>(i)].view().rows(row, rows(from, rank(), i)),
                   tag(from, rank(), i));
    }
  }
}

// As in the backward pass: gradients are summed while rows travel and other collectives run.
TEST_P(CommunicatorTest, ReductionsStayApartFromEachOtherAndFromOtherCollectives) {
  constexpr int64_t kLong = (int64_t{1} << 18) + 5;
  const int64_t lengths[] = {kLong, 0, 33, kLong};
  std::vector<Tensor> in, out;
  std::vector<std::unique_ptr<PendingCollective>> pending;
  for (const int64_t n : lengths) {
    in.push_back(test::make_tensor({n * size()}, elements_of<float>(rank(), n * size())));
    out.emplace_back(Shape{n}, DType::f32);
  }

  for (size_t i = 0; i < in.size(); ++i) {
    pending.push_back(group().start_reduce_scatter(stream_, in[i], out[i]));
    expect_all_reduce<float>(33, ReduceOp::sum);
    expect_all_to_all_v([](int from, int to) { return int64_t{3} * from + to; }, 33, DType::f32);
  }
  expect_all_reduce<float>(100003, ReduceOp::sum);
  group().barrier(stream_);
  for (const auto& reduction : pending) reduction->wait(stream_);

  synchronize(test::device());
  for (size_t i = 0; i < in.size(); ++i) {
    const int64_t n = lengths[i];
    const std::vector<float> expected = combined<float, float>(rank() * n, n, ReduceOp::sum);
    sums_in_rank_order(n * size(), DType::f32, ReduceOp::sum)
        ? expect_same_bits(out[i].data<float>(), expected)
        : expect_close(out[i].data<float>(), expected);
  }
}

// The transfer sends what earlier work of the stream wrote; work after the wait sees the rows.
TEST_P(CommunicatorTest, TransfersAreOrderedWithTheStream) {
  const int64_t n = size();
  const std::vector<int64_t> ones(static_cast<size_t>(n), 1);
  Tensor source = test::make_tensor({n}, std::vector<float>(static_cast<size_t>(n), 1.0f + rank()));
  Tensor in({n}, DType::f32), out({n}, DType::f32), result({n}, DType::f32);

  copy(stream_, source, in);
  const auto pending = group().start_all_to_all_v(stream_, in, ones, out, ones);
  pending->wait(stream_);
  fill_zero(stream_, in);  // the transfer has read it
  copy(stream_, out, result);

  for (int64_t r = 0; r < n; ++r) {
    EXPECT_EQ(result.data<float>()[r], 1.0f + static_cast<float>(r));
  }
}

TEST_P(CommunicatorTest, EmptyViewsWithoutMemoryAreOrdinary) {
  const TensorView none(nullptr, Shape{0, 4}, DType::f32);
  const std::vector<int64_t> zeros(static_cast<size_t>(size()), 0);

  group().barrier(stream_);
  group().broadcast(stream_, none, 0);
  group().all_reduce(stream_, none, ReduceOp::sum);
  group().all_gather(stream_, none, none);
  group().reduce_scatter(stream_, none, none);
  group().all_to_all_v(stream_, none, zeros, none, zeros);

  // Later collectives still match between the ranks.
  expect_all_reduce<float>(33, ReduceOp::sum);
}

// Every rank throws, so no rank waits.
TEST_P(CommunicatorTest, RefusesShapesCountsAndDtypesThatDoNotFit) {
  const auto n = static_cast<int64_t>(size());
  Tensor one({1}, DType::f32), many({n + 1}, DType::f32), bytes({n}, DType::u8);
  Tensor doubles({n}, DType::f64), byte({1}, DType::u8);
  const std::vector<int64_t> ones(static_cast<size_t>(n), 1), too_many(ones.size() + 1, 1);
  Tensor rows({n, 2}, DType::f32), wider({n, 3}, DType::f32);

  EXPECT_THROW(group().reduce_scatter(stream_, many, one), Error);
  EXPECT_THROW(group().reduce_scatter(stream_, doubles, one), Error);
  EXPECT_THROW(group().reduce_scatter(stream_, bytes, byte), Error);
  EXPECT_THROW(group().all_gather(stream_, one, many), Error);
  EXPECT_THROW(group().all_gather(stream_, one, doubles), Error);
  EXPECT_THROW(group().all_reduce(stream_, bytes, ReduceOp::sum), Error);
  EXPECT_THROW(group().broadcast(stream_, one, size()), Error);
  EXPECT_THROW(group().broadcast(stream_, one, -1), Error);
  EXPECT_THROW(group().all_to_all_v(stream_, rows, too_many, rows, ones), Error);
  EXPECT_THROW(group().all_to_all_v(stream_, many, ones, many, ones), Error);
  EXPECT_THROW(group().all_to_all_v(stream_, rows, ones, wider, ones), Error);
  EXPECT_THROW(group().all_to_all_v(stream_, doubles, ones, many.view().rows(0, n), ones), Error);
}

std::vector<Kind> kinds() {
  std::vector<Kind> kinds = {Kind::self, Kind::world, Kind::neighbours, Kind::apart};
  const bool on_cuda = parse_device(test::device_name()).kind == DeviceKind::cuda;
  if (on_cuda && !nccl_version().empty()) kinds.push_back(Kind::nccl_self);
  return kinds;
}

INSTANTIATE_TEST_SUITE_P(Groups, CommunicatorTest, testing::ValuesIn(kinds()),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

}  // namespace
}  // namespace switchyard
