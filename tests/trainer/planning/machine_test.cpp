#include "trainer/planning/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/planning/machine_file.h"

namespace switchyard {
namespace {

using test::error_of;
using testing::AllOf;
using testing::HasSubstr;

// ---- Times of sizes ----------------------------------------------------------------------------

TEST(ByteTimesTest, AreLinearBetweenAndBeyondThePoints) {
  const ByteTimes times{.latency = 0, .bytes = {0, 100, 300}, .seconds = {1, 2, 6}};
  EXPECT_DOUBLE_EQ(times.of(50), 1.5);
  EXPECT_DOUBLE_EQ(times.of(200), 4.0);
  EXPECT_DOUBLE_EQ(times.of(500), 10.0);
  EXPECT_DOUBLE_EQ(ByteTimes::line(2e-6, 1e9).of(5e9), 5.0);
}

TEST(ByteTimesTest, NeverFallBelowTheSmallest) {
  const ByteTimes times{.latency = 0, .bytes = {64, 128}, .seconds = {1.0, 2.0}};
  EXPECT_DOUBLE_EQ(times.of(0), 1.0);
}

TEST(ByteTimesTest, TheRateIsThatOfTheLongest) {
  EXPECT_DOUBLE_EQ(ByteTimes::line(2e-6, 1e9, /*per_message=*/1e-3).rate(), 1e9);
  EXPECT_DOUBLE_EQ((ByteTimes{.bytes = {64, 128, 1128}, .seconds = {0, 2, 12}}.rate()), 100.0);
  EXPECT_DOUBLE_EQ((ByteTimes{.bytes = {64}, .seconds = {2}}.rate()), 32.0);
}

// 1e-9 m n^0.5 k, which is a line in logarithms.
TimeGrid power_law() {
  TimeGrid grid{.m = {2, 8}, .n = {4, 64}, .k = {1, 10, 100}, .seconds = {}};
  for (const double m : grid.m) {
    for (const double n : grid.n) {
      for (const double k : grid.k) grid.seconds.push_back(1e-9 * m * std::sqrt(n) * k);
    }
  }
  return grid;
}

TEST(TimeGridTest, InterpolatesPowersExactly) {
  EXPECT_NEAR(power_law().of(2, 4, 1), 4e-9, 1e-20);
  EXPECT_NEAR(power_law().of(4, 16, 50), 1e-9 * 4 * 4 * 50, 1e-18);
  EXPECT_NEAR(power_law().of(1, 4, 1), 2e-9, 1e-20);  // The slope goes on below the smallest size.
}

TEST(TimeGridTest, KeepsTheRateBeyondTheLargestSize) {
  const double at_edge = power_law().of(8, 64, 100);
  EXPECT_NEAR(power_law().of(8, 256, 100), 4 * at_edge, 1e-15);
  EXPECT_NEAR(power_law().of(16, 64, 200), 4 * at_edge, 1e-15);
}

TEST(TimeGridTest, ASizeWithOnePointIsKept) {
  const TimeGrid grid{.m = {10, 100}, .n = {64}, .k = {1}, .seconds = {1.0, 100.0}};
  EXPECT_NEAR(grid.of(20, 64, 1), 4.0, 1e-12);
  EXPECT_NEAR(grid.of(20, 32, 1), 4.0, 1e-12);
}

// ---- Work --------------------------------------------------------------------------------------

// A described machine of 1 TFLOP/s, of which products reach a half, 100 GB/s of memory, and 1 us
// per op.
Machine described() {
  Machine machine;
  machine.name = "test";
  machine.products[DType::f32] = {.peak = 1e12, .efficiency = 0.5};
  machine.other_ops = ByteTimes::line(1e-6, 100e9);
  machine.ops["slow"] = ByteTimes::line(1e-3, 1e9);
  machine.ranks_per_host = 2;
  machine.all_to_all = machine.all_gather = machine.reduce_scatter = {
      .within_host = ByteTimes::line(1e-6, 1e9), .between_hosts = ByteTimes::line(1e-5, 1e8)};
  return machine;
}

TEST(MachineTest, AnOpTakesTheTimeOfItsName) {
  const Machine machine = described();
  EXPECT_DOUBLE_EQ(machine.seconds_of(TracedOp{"slow", 1'000'000, {}, {}}), 2e-3);
  EXPECT_DOUBLE_EQ(machine.seconds_of(TracedOp{"other", 1'000'000, {}, {}}), 11e-6);
}

TEST(MachineTest, ADescribedProductIsBoundByArithmeticOrByMemory) {
  const auto product = [](int64_t m) {
    return TracedOp{
        "matmul", 0, TracedProducts{{ProductKind::forward, DType::f32, m, 1000, 1000}, {}}, {}};
  };
  EXPECT_DOUBLE_EQ(described().seconds_of(product(1000)), 1e-6 + 2e9 / 0.5e12);
  // One row reads a matrix of 4 MB.
  EXPECT_DOUBLE_EQ(described().seconds_of(product(1)), 1e-6 + 4.008e6 / 100e9);
}

TEST(MachineTest, EveryExpertOfAGroupTakesTheTimeOfItsRows) {
  Machine machine = described();
  TimeGrid grid{.m = {1, 1000}, .n = {10, 20}, .k = {10, 20}, .seconds = {}};
  // A second per row.
  for (int i = 0; i < 8; ++i) grid.seconds.push_back(i < 4 ? 1.0 : 1000.0);
  machine.products[DType::f32].single.fill(grid);
  machine.products[DType::f32].grouped.fill(grid);
  const TracedOp forward{
      "grouped",
      0,
      TracedProducts{{ProductKind::forward, DType::f32, 30, 10, 10}, {10, 0, 20}},
      {}};
  EXPECT_NEAR(machine.seconds_of(forward), 30.0, 1e-9);
}

TEST(MachineTest, RefusesADtypeWithoutFigures) {
  const TracedOp op{
      "matmul", 0, TracedProducts{{ProductKind::forward, DType::bf16, 8, 8, 8}, {}}, {}};
  EXPECT_THAT(error_of([&] { described().seconds_of(op); }),
              AllOf(HasSubstr("'test'"), HasSubstr("bf16")));
}

TEST(MachineTest, RanksThatShareCoresTakeLonger) {
  Machine machine = described();
  EXPECT_EQ(machine.contention(8), 1.0);
  machine.cores_per_host = 4;
  machine.threads = 2;
  EXPECT_EQ(machine.contention(2), 1.0);
  EXPECT_EQ(machine.contention(8), 4.0);
}

// ---- Transfers ---------------------------------------------------------------------------------

// 4 ranks on 2 hosts of 2: one peer here, two there.
Traffic traffic(CollectiveKind kind) {
  return {.kind = kind,
          .ranks = 4,
          .peers_within = 1,
          .peers_between = 2,
          .ranks_per_host = 2,
          .bytes = 4000,
          .bytes_within = 1000,
          .bytes_between = 2000};
}

TEST(MachineTest, AHostsLinkTakesTheMessagesOfItsRanksOneAfterTheOther) {
  const double within = 1e-6 + 1000 / 1e9, between = 1e-5 + 2 * 2 * 1000 / 1e8;
  EXPECT_DOUBLE_EQ(described().seconds_of(traffic(CollectiveKind::all_to_all)), within + between);
  Machine overlapping = described();
  overlapping.links_overlap = true;
  EXPECT_DOUBLE_EQ(overlapping.seconds_of(traffic(CollectiveKind::all_to_all)), between);
}

TEST(MachineTest, AnAllReduceIsAReduceScatterAndAnAllGather) {
  EXPECT_DOUBLE_EQ(described().seconds_of(traffic(CollectiveKind::all_reduce)),
                   described().seconds_of(traffic(CollectiveKind::reduce_scatter)) +
                       described().seconds_of(traffic(CollectiveKind::all_gather)));
}

// Of 4000 bytes, 3 parts of 1000 cross each host's link once.
TEST(MachineTest, ARingCrossesALinkOncePerGroup) {
  Machine machine = described();
  machine.rings = true;
  EXPECT_DOUBLE_EQ(machine.seconds_of(traffic(CollectiveKind::all_gather)),
                   2 * 1e-5 + 3 * 1000 / 1e8);
}

// A calibration on one host knows nothing of links between hosts: a plan must not take them for
// free.
TEST(MachineTest, RefusesTrafficOverLinksThatWereNotMeasured) {
  Machine machine = described();
  machine.all_gather.between_hosts = {};
  Traffic inside = traffic(CollectiveKind::all_gather);
  inside.peers_between = 0;
  EXPECT_GT(machine.seconds_of(inside), 0.0);
  EXPECT_THAT(error_of([&] { machine.seconds_of(traffic(CollectiveKind::all_gather)); }),
              AllOf(HasSubstr("'test' was measured without links between hosts"),
                    HasSubstr("calibrate on two or more hosts")));
  machine = described();
  machine.rings = true;
  machine.reduce_scatter.within_host = {};
  EXPECT_THAT(error_of([&] { machine.seconds_of(traffic(CollectiveKind::reduce_scatter)); }),
              HasSubstr("without links within a host"));
}

// ---- Files -------------------------------------------------------------------------------------

class MachineFileTest : public testing::Test {
 protected:
  Machine read(const std::string& text) {
    std::ofstream(path_) << text;
    return read_machine(path_);
  }
  std::string refusal(const std::string& text) {
    return error_of([&] { read(text); });
  }

  const std::string described_ =
      "name: a\nsource: b\ndevice: cuda\nranks_per_host: 8\nbackground: 1\n"
      "products: {f32: {peak: 1e12, efficiency: 0.5}}\n"
      "ops: {other: {latency: 1e-6, bytes_per_second: 1e11}}\n"
      "links: {within_host: {latency: 1e-6, bytes_per_second: 1e9}}\n";
  test::TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "machine.yaml";
};

TEST_F(MachineFileTest, ReadsADescription) {
  const Machine machine = read(described_);
  EXPECT_EQ(machine.ranks_per_host, 8);
  EXPECT_EQ(machine.products_in(DType::f32).peak, 1e12);
  EXPECT_EQ(machine.background, 1.0);
  EXPECT_DOUBLE_EQ(machine.all_gather.between_hosts.of(2e9), 2.0);
  EXPECT_DOUBLE_EQ(machine.all_gather.between_hosts.latency, 1e-6);
}

TEST_F(MachineFileTest, ReadsWhatItWrites) {
  Machine machine = described();
  machine.source = "a test";
  for (auto* grids :
       {&machine.products[DType::f32].single, &machine.products[DType::f32].grouped}) {
    grids->fill(power_law());
  }
  machine.products[DType::f32].efficiency = 0.0;
  machine.products[DType::f32].attention.fill(power_law());
  machine.all_gather.between_hosts = {};
  const Machine again = read(to_yaml(machine));
  EXPECT_EQ(to_yaml(again), to_yaml(machine));
  EXPECT_TRUE(again.all_gather.between_hosts.empty());
  EXPECT_FALSE(again.all_gather.within_host.empty());
  EXPECT_NEAR(again.products.at(DType::f32).single[0].of(4, 16, 50), 8e-7, 1e-12);
}

TEST_F(MachineFileTest, NamesWhatIsWrong) {
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = described_;
    text.replace(text.find(from), from.size(), to);
    return refusal(text);
  };
  EXPECT_THAT(
      with("ranks_per_host: 8", "ranks_per_host: 0"),
      AllOf(HasSubstr("machine.yaml"), HasSubstr("ranks_per_host must be a number from 1")));
  EXPECT_THAT(with("ranks_per_host: 8", "ranks_per_host: 2.5"),
              HasSubstr("ranks_per_host must be a whole number"));
  EXPECT_THAT(with("background: 1", "background: 1\nbackground: 0"),
              HasSubstr("background is given twice"));
  EXPECT_THAT(with("peak: 1e12", "peak: nan"), HasSubstr("products.f32.peak"));
  EXPECT_THAT(with("peak: 1e12, ", ""), HasSubstr("products.f32.peak is missing"));
  EXPECT_THAT(with("device: cuda", "device: tpu"), HasSubstr("expected cpu or cuda"));
  EXPECT_THAT(with("background", "backgrounds"), HasSubstr("background is missing"));
  EXPECT_THAT(with("source: b", "source: b\ncolour: red"), HasSubstr("unknown key colour"));
  EXPECT_THAT(with("other", "matmul"), HasSubstr("ops.other is missing"));
  EXPECT_THAT(with("bytes_per_second: 1e9", "rate: 1e9"), HasSubstr("links.within_host.bytes"));
  EXPECT_THAT(refusal("name: [\n"), HasSubstr("machine.yaml:"));
  EXPECT_THAT(refusal("7"), HasSubstr("must be a map"));
  EXPECT_THAT(error_of([&] { read_machine(folder_.path() / "none.yaml"); }),
              HasSubstr("none.yaml: no such file"));
}

TEST_F(MachineFileTest, CountsTheNumbersOfATable) {
  EXPECT_THAT(refusal(described_.substr(0, described_.find("links")) +
                      "links: {within_host: {bytes: [1, 2], seconds: [1]}}\n"),
              AllOf(HasSubstr("links.within_host.bytes has 2"), HasSubstr("has 1")));
}

}  // namespace
}  // namespace switchyard
