#include "trainer/checkpoint/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/checkpoint_fixture.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/shard.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

struct InspectTest : testing::Test {
  InspectTest() {
    FakeRank rank(ParallelLayout(1, 1, 1), 0);
    CheckpointTensors tensors = rank.tensors();
    for (TensorPiece& piece : tensors.owned) {
      std::fill(piece.data.begin(), piece.data.end(), piece.kind == kWeights ? -2.0f : 0.5f);
    }
    Checkpoints checkpoints(folder.path(), 0, dist);
    for (const int64_t step : {6, 7}) {
      EXPECT_EQ(checkpoints.save(test::fake_state(step), tensors).problem, "");
    }
    newest = checkpoints.folder_of(7);
  }

  using FakeRank = test::FakeRank;
  test::TemporaryFolder folder;
  DistributedContext dist;
  fs::path newest;
};

TEST_F(InspectTest, ShowsCountersTensorsAndConfiguration) {
  const std::string text = inspect_checkpoint(newest, /*verify=*/false).text;

  EXPECT_THAT(text, HasSubstr("step                 7 (6 updates, 1 steps skipped)"));
  EXPECT_THAT(text, HasSubstr("224 sequences, 229376 target tokens"));
  EXPECT_THAT(text, HasSubstr("weights/layers.0.moe.experts.up.weight"));
  EXPECT_THAT(text, HasSubstr("[8, 11, 8]"));
  EXPECT_THAT(text, HasSubstr(test::fake_state(7).config));
  EXPECT_THAT(text, Not(HasSubstr("norm ")));
  EXPECT_THAT(text,
              testing::EndsWith("only the manifest was read; --verify reads all files and every "
                                "value\n"));
}

TEST_F(InspectTest, VerifyingAddsStatistics) {
  const std::string text = inspect_checkpoint(newest, /*verify=*/true).text;

  // 64 elements of -2.
  EXPECT_THAT(text, testing::ContainsRegex("weights/layers.0.moe.router.weight +\\[8, 8\\] +"
                                           "norm 16  mean -2  min -2  max -2\n"));
  EXPECT_THAT(text,
              testing::EndsWith("intact: every checksum matches, and every value is finite\n"));
}

// Writes the files of a checkpoint of one tensor as programs did that stored everything.
void write_unchecked(const fs::path& checkpoint, std::vector<float> weights,
                     std::vector<float> moments) {
  fs::create_directories(checkpoint);
  const PieceGeometry whole = whole_tensor({static_cast<int64_t>(weights.size())});
  const std::vector<TensorPiece> pieces = {{kWeights, "norm.weight", whole, weights},
                                           {kExpAvg, "norm.weight", whole, moments}};
  Manifest manifest{.state = test::fake_state(3),
                    .layout = {},
                    .model_fingerprint = "",
                    .shards = {write_shard(checkpoint / shard_name(0), pieces)},
                    .model_file = {}};
  manifest.model_file = write_model_file(checkpoint / kModelFileName, manifest);
  test::write_file(checkpoint / kManifestName, to_text(manifest));
}

TEST_F(InspectTest, VerifyingCountsNanAndInfinitiesPerTensorAndInTotal) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const fs::path checkpoint = folder.path() / "step_00000003";
  write_unchecked(checkpoint, {1.0f, kNan, 3.0f, -kInfinity}, {kNan, kNan, kNan, kNan});

  const Inspection verified = inspect_checkpoint(checkpoint, /*verify=*/true);

  EXPECT_EQ(verified.not_finite.nan, 5);
  EXPECT_EQ(verified.not_finite.infinite, 1);
  EXPECT_THAT(verified.text,
              testing::ContainsRegex("weights/norm.weight +\\[4\\] +norm 3.16228  mean 2 "
                                     " min 1  max 3  1 NaN and 1 infinity\n"));
  EXPECT_THAT(verified.text, testing::ContainsRegex("exp_avg/norm.weight +\\[4\\] +4 NaN\n"));
  EXPECT_THAT(verified.text, Not(HasSubstr("intact")));
  EXPECT_EQ(inspect_checkpoint(checkpoint, /*verify=*/false).not_finite.total(), 0);
}

TEST_F(InspectTest, VerifyingDetectsAFlippedBitInAnyFile) {
  for (const char* name : {"shard_00000.h5", "model.h5", "manifest.json"}) {
    const size_t size = fs::file_size(newest / name);
    for (size_t byte = 0; byte < size; byte += 1 + size / 23) {
      test::flip_bit(newest / name, byte);

      const std::string error = test::error_of([&] { inspect_checkpoint(newest, true); });

      EXPECT_THAT(error, HasSubstr(name)) << "byte " << byte;
      test::flip_bit(newest / name, byte);
    }
  }
}

TEST_F(InspectTest, ListsTheCheckpointsOfARun) {
  fs::remove(newest / "manifest.json");

  const std::string text = inspect_checkpoint(folder.path(), /*verify=*/false).text;

  EXPECT_THAT(text, HasSubstr("step_00000006  step 6, 196608 target tokens, 1 ranks\n"));
  EXPECT_THAT(text, HasSubstr("step_00000007  cannot open"));
}

TEST_F(InspectTest, ListsTheCheckpointsOfARunFolderAndVerifiesTheNewest) {
  const fs::path run = folder.path() / "run";
  fs::create_directory(run);
  fs::create_directory(run / "checkpoints");
  for (const char* name : {"step_00000006", "step_00000007"}) {
    fs::rename(folder.path() / name, run / "checkpoints" / name);
  }

  const std::string list = inspect_checkpoint(run, /*verify=*/false).text;
  const std::string verified = inspect_checkpoint(run, /*verify=*/true).text;

  EXPECT_THAT(list, HasSubstr("step_00000006  step 6, 196608 target tokens, 1 ranks\n"));
  EXPECT_THAT(list, HasSubstr("step_00000007  step 7"));
  EXPECT_THAT(list, testing::EndsWith("only manifests were read; --verify reads every value of the "
                                      "newest\n"));
  EXPECT_THAT(verified, testing::StartsWith(list.substr(0, list.rfind("only"))));
  EXPECT_THAT(verified, HasSubstr("step                 7 (6 updates"));
  EXPECT_THAT(verified, HasSubstr("intact"));
  EXPECT_EQ(find_checkpoint(run), run / "checkpoints" / "step_00000007");
  EXPECT_EQ(find_checkpoint(run / "checkpoints"), run / "checkpoints" / "step_00000007");
  EXPECT_EQ(find_checkpoint(run / "checkpoints" / "step_00000006"),
            run / "checkpoints" / "step_00000006");
}

TEST_F(InspectTest, AnotherFolderIsNoCheckpoint) {
  const fs::path empty = folder.path() / "empty";
  fs::create_directory(empty);

  EXPECT_THAT(test::error_of([&] { inspect_checkpoint(empty, false); }),
              HasSubstr("empty is neither a checkpoint nor a run: it has no manifest.json"));
}

}  // namespace
}  // namespace switchyard
