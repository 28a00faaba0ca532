#include "trainer/checkpoint/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/checkpoint_fixture.h"
#include "trainer/checkpoint/checkpoint_folders.h"

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
  const std::string text = inspect_checkpoint(newest, /*verify=*/false);

  EXPECT_THAT(text, HasSubstr("step                 7 (6 updates, 1 steps skipped)"));
  EXPECT_THAT(text, HasSubstr("224 sequences, 229376 target tokens"));
  EXPECT_THAT(text, HasSubstr("weights/layers.0.moe.experts.up.weight"));
  EXPECT_THAT(text, HasSubstr("[8, 11, 8]"));
  EXPECT_THAT(text, HasSubstr(test::fake_state(7).config));
  EXPECT_THAT(text, Not(HasSubstr("norm ")));
}

TEST_F(InspectTest, VerifyingAddsStatistics) {
  const std::string text = inspect_checkpoint(newest, /*verify=*/true);

  // 64 elements of -2.
  EXPECT_THAT(text, testing::ContainsRegex("weights/layers.0.moe.router.weight +\\[8, 8\\] +"
                                           "norm 16  mean -2  min -2  max -2\n"));
  EXPECT_THAT(text, HasSubstr("intact"));
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

  const std::string text = inspect_checkpoint(folder.path(), /*verify=*/false);

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

  const std::string list = inspect_checkpoint(run, /*verify=*/false);
  const std::string verified = inspect_checkpoint(run, /*verify=*/true);

  EXPECT_THAT(list, HasSubstr("step_00000006  step 6, 196608 target tokens, 1 ranks\n"));
  EXPECT_THAT(list, HasSubstr("step_00000007  step 7"));
  EXPECT_THAT(verified, testing::StartsWith(list));
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
