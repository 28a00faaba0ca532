#include "trainer/training/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/resource.h>
#include <cmath>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::Not;
using ::testing::Pair;

class MetricsFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::path(::testing::TempDir()) /
            (std::string("metrics_") +
             ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl");
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }

  static StepMetrics at_step(int64_t step) {
    StepMetrics metrics;
    metrics.step = step;
    metrics.loss = 1.0 / static_cast<double>(step);
    return metrics;
  }

  void write_steps(int64_t first, int64_t last) {
    MetricsFile file(path_, first - 1);
    for (int64_t step = first; step <= last; ++step) file.append(at_step(step));
  }

  void append_raw(const std::string& text) const {
    std::ofstream(path_, std::ios::app | std::ios::binary) << text;
  }

  // The steps of all lines; throws at a line that is not JSON.
  std::vector<int64_t> steps() const {
    std::vector<int64_t> found;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      EXPECT_EQ(line.find('\0'), std::string::npos);  // the JSON parser would stop there
      found.push_back(nlohmann::json::parse(line).at("step").get<int64_t>());
    }
    return found;
  }

  std::filesystem::path path_;
};

TEST(MetricsToJson, HoldsTheLossOfEachHeldOutFileByItsName) {
  StepMetrics metrics;
  metrics.val_loss = 2.5;
  EXPECT_FALSE(nlohmann::json::parse(to_json(metrics)).contains("val_losses"));
  metrics.val_losses = {{"web", 3.0}, {"code", 2.0}};

  const auto record = nlohmann::json::parse(to_json(metrics));

  EXPECT_EQ(record.at("val_losses"), nlohmann::json({{"web", 3.0}, {"code", 2.0}}));
  EXPECT_THAT(tensorboard_scalars(metrics), AllOf(Contains(Pair("validation/loss", 2.5)),
                                                  Contains(Pair("validation/loss/web", 3.0)),
                                                  Contains(Pair("validation/loss/code", 2.0))));
}

TEST(MetricsToJson, HoldsEveryFigureUnderItsName) {
  StepMetrics metrics;
  metrics.step = 7;
  metrics.tokens = 57344;
  metrics.loss = 0.1;  // not a binary fraction; it must read back as the same double
  metrics.exchange_bytes = int64_t{1} << 40;
  metrics.skipped = true;

  const auto record = nlohmann::json::parse(to_json(metrics));

  EXPECT_EQ(record.at("step"), 7);
  EXPECT_EQ(record.at("tokens"), 57344);
  EXPECT_EQ(record.at("loss").get<double>(), 0.1);
  EXPECT_EQ(record.at("exchange_bytes"), int64_t{1} << 40);
  EXPECT_EQ(record.at("skipped"), true);
  for (const char* key : {"aux_loss", "z_loss", "grad_norm", "lr", "step_ms", "forward_ms",
                          "backward_ms", "exchange_ms", "optimizer_ms", "data_ms", "tokens_per_s",
                          "mfu", "max_load_ratio", "dropped_tokens", "peak_memory_bytes"}) {
    EXPECT_TRUE(record.contains(key)) << key;
  }
}

TEST(MetricsToJson, LeavesOutWhatWasNotMeasured) {
  const auto record = nlohmann::json::parse(to_json(StepMetrics{}));

  EXPECT_FALSE(record.contains("val_loss"));
  EXPECT_FALSE(record.contains("expert_load"));
}

TEST(MetricsToJson, HoldsValidationLossAndExpertLoad) {
  StepMetrics metrics;
  metrics.val_loss = 3.5;
  metrics.expert_load = {{0.25, 0.75}, {0.5, 0.5}};

  const auto record = nlohmann::json::parse(to_json(metrics));

  EXPECT_EQ(record.at("val_loss"), 3.5);
  EXPECT_EQ(record.at("expert_load"), (nlohmann::json{{0.25, 0.75}, {0.5, 0.5}}));
}

TEST(MetricsToJson, StaysJsonWhenTheLossIsNotFinite) {
  StepMetrics metrics;
  metrics.loss = NAN;
  metrics.grad_norm = INFINITY;

  const auto record = nlohmann::json::parse(to_json(metrics));

  EXPECT_TRUE(record.at("loss").is_null());
  EXPECT_TRUE(record.at("grad_norm").is_null());
}

TEST(StepMetricFields, AreWhatTheDocsSay) {
  std::ifstream file(std::filesystem::path(SWITCHYARD_SOURCE_DIR) / "docs/formats.md");
  const std::string docs{std::istreambuf_iterator<char>(file), {}};

  EXPECT_THAT(docs, HasSubstr(describe_step_metrics()));
}

TEST(TensorboardScalars, HoldTheFiguresThatHaveATag) {
  StepMetrics metrics;
  metrics.loss = 2.5;
  metrics.dropped_tokens = 3;

  EXPECT_THAT(tensorboard_scalars(metrics),
              AllOf(Contains(Pair("train/loss", 2.5)), Contains(Pair("router/dropped_tokens", 3.0)),
                    Not(Contains(Key("validation/loss")))));
  metrics.val_loss = 4.5;
  EXPECT_THAT(tensorboard_scalars(metrics), Contains(Pair("validation/loss", 4.5)));
}

TEST_F(MetricsFileTest, LinesCanBeReadWhileTheFileIsOpen) {
  MetricsFile file(path_, 0);

  file.append(at_step(1));
  file.append(at_step(2));

  EXPECT_THAT(steps(), ElementsAre(1, 2));
}

TEST_F(MetricsFileTest, IsCutBackToTheRestoredStep) {
  write_steps(1, 5);

  MetricsFile(path_, 3).append(at_step(4));

  EXPECT_THAT(steps(), ElementsAre(1, 2, 3, 4));
}

TEST_F(MetricsFileTest, AFreshRunStartsAnEmptyFile) {
  write_steps(1, 5);

  MetricsFile(path_, 0).append(at_step(1));

  EXPECT_THAT(steps(), ElementsAre(1));
}

TEST_F(MetricsFileTest, CutsATornLastLine) {
  write_steps(1, 3);
  append_raw(R"({"step":4,"loss":0.)");

  MetricsFile(path_, 10).append(at_step(4));

  EXPECT_THAT(steps(), ElementsAre(1, 2, 3, 4));
}

// If {"step":41} is torn after the first digit, the rest reads as step 4.
TEST_F(MetricsFileTest, CutsALastLineWithoutALineBreakEvenIfItIsJson) {
  write_steps(1, 3);
  append_raw(R"({"step":4})");

  MetricsFile(path_, 10).append(at_step(4));

  EXPECT_THAT(steps(), ElementsAre(1, 2, 3, 4));
}

TEST_F(MetricsFileTest, CutsTrailingGarbageWithALineBreak) {
  write_steps(1, 2);
  append_raw(std::string(16, '\0') + "\n");

  MetricsFile(path_, 10).append(at_step(3));

  EXPECT_THAT(steps(), ElementsAre(1, 2, 3));
}

// A number beyond the range of steps must not be taken for a negative one, which would be kept.
TEST_F(MetricsFileTest, CutsAStepOutsideTheRange) {
  write_steps(1, 2);
  append_raw("{\"step\":18446744073709551615}\n");

  MetricsFile(path_, 10).append(at_step(3));

  EXPECT_THAT(steps(), ElementsAre(1, 2, 3));
}

TEST_F(MetricsFileTest, OnlyTheMetricsOfARunAreReplaced) {
  const std::string notes = "{\"epoch\": 1}\n";
  append_raw(notes);

  EXPECT_THAT(test::error_of([&] { MetricsFile file(path_, 0); }),
              HasSubstr("is not the metrics of a run, so run.dir does not replace it"));

  EXPECT_EQ(std::filesystem::file_size(path_), notes.size());
}

TEST_F(MetricsFileTest, NamesAPathThatCannotBeOpened) {
  try {
    MetricsFile file("/nonexistent/folder/metrics.jsonl", 0);
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("/nonexistent/folder/metrics.jsonl"));
  }
}

// A limit on the size of files stands in for a full disk.
TEST_F(MetricsFileTest, AFailedWriteLeavesNoHalfLine) {
  MetricsFile file(path_, 0);
  file.append(at_step(1));
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlim_t kept = limit.rlim_cur;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  limit.rlim_cur = std::filesystem::file_size(path_) + 20;
  setrlimit(RLIMIT_FSIZE, &limit);

  EXPECT_THROW(file.append(at_step(2)), Error);
  limit.rlim_cur = kept;
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  file.append(at_step(3));

  EXPECT_THAT(steps(), ElementsAre(1, 3));
}

}  // namespace
}  // namespace switchyard
