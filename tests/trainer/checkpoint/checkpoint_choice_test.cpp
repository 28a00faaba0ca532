#include "trainer/checkpoint/checkpoint_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/checkpoint_fixture.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::FakeRank;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct CheckpointChoiceTest : testing::Test {
  // A checkpoint of the run in `dir`, which came from `origins`.
  fs::path save(const fs::path& dir, int64_t step, std::vector<Origin> origins = {}) {
    FakeRank rank(ParallelLayout(1, 1, 1), 0);
    rank.fill(static_cast<uint64_t>(step));
    TrainingState state = test::fake_state(step);
    state.origins = std::move(origins);
    Checkpoints checkpoints(dir / "checkpoints", 0, dist);
    EXPECT_TRUE(checkpoints.save(state, rank.tensors()).saved);
    return checkpoints.folder_of(step);
  }
  static Origin origin_of(const fs::path& checkpoint, const std::string& path) {
    return {path, checkpoint_fingerprint(CheckpointReader(checkpoint).manifest())};
  }
  CheckpointChoice choose(const std::string& wish) const {
    return choose_checkpoint(run, wish, CheckpointUse::training);
  }

  test::TemporaryFolder folder;
  fs::path run = folder.path() / "run", base = folder.path() / "base";
  DistributedContext dist;
};

TEST_F(CheckpointChoiceTest, AutoTakesTheNewestFirstAndNoneNothing) {
  const fs::path one = save(run, 1), two = save(run, 2);

  EXPECT_THAT(choose("auto").candidates, ElementsAre(two, one));
  EXPECT_EQ(choose("none"), CheckpointChoice{});
}

TEST_F(CheckpointChoiceTest, ANewRunStartsAfreshOrFromThePath) {
  const fs::path source = save(base, 100);

  EXPECT_THAT(choose("auto").candidates, IsEmpty());
  for (const fs::path& path : {source, base, base / "checkpoints" / "latest"}) {
    const CheckpointChoice choice = choose(path.string());

    EXPECT_THAT(choice.candidates, ElementsAre(find_checkpoint(path)));
    EXPECT_FALSE(choice.of_this_run);
    EXPECT_EQ(choice.origin, origin_of(source, path.string()));
  }
}

TEST_F(CheckpointChoiceTest, ANewRunBeginsWithTheWeightsOfThePathAndGoesOnFromItsOwn) {
  const fs::path source = save(base, 100);
  const std::string wish = "weights:" + base.string();

  const CheckpointChoice choice = choose(wish);

  EXPECT_THAT(choice.candidates, ElementsAre(source));
  EXPECT_TRUE(choice.weights_alone);
  EXPECT_FALSE(choice.of_this_run);
  EXPECT_EQ(choose_checkpoint_together(dist.world(), run, wish, CheckpointUse::training), choice);
  EXPECT_FALSE(choose(base.string()).weights_alone);

  const fs::path own = save(run, 10, {*choice.origin});
  EXPECT_THAT(choose(wish).candidates, ElementsAre(own));
  EXPECT_FALSE(choose(wish).weights_alone);
}

// Its weights at another step would begin a run in the folder of this one.
TEST_F(CheckpointChoiceTest, ARunDoesNotBeginAgainWithItsOwnWeights) {
  save(run, 100);
  save(run, 200);

  for (const char* checkpoint : {"step_00000100", "step_00000200"}) {
    const std::string wish = "weights:" + (run / "checkpoints" / checkpoint).string();
    EXPECT_THAT(error_of([&] { choose(wish); }), HasSubstr("give run.dir a new folder"));
  }
}

TEST_F(CheckpointChoiceTest, ARunThatCameFromThePathGoesOnFromItsOwn) {
  const fs::path source = save(base, 100);
  const std::vector<Origin> origins = {origin_of(source, "given/before")};
  const fs::path one = save(run, 110, origins), two = save(run, 120, origins);
  fs::rename(base, folder.path() / "moved");

  const CheckpointChoice choice = choose((folder.path() / "moved").string());

  EXPECT_THAT(choice.candidates, ElementsAre(two, one));
  EXPECT_TRUE(choice.of_this_run);
  EXPECT_FALSE(choice.origin);
  EXPECT_THAT(choice.reason, HasSubstr("goes on from its own checkpoints"));
}

TEST_F(CheckpointChoiceTest, AnOriginThatIsGoneIsKnownByItsPath) {
  const fs::path source = save(base, 100);
  const fs::path own = save(run, 110, {origin_of(source, source.string())});
  fs::remove_all(base);

  EXPECT_THAT(choose(source.string()).candidates, ElementsAre(own));
  EXPECT_THAT(error_of([&] { choose("another/path"); }), HasSubstr("another/path does not exist"));
}

TEST_F(CheckpointChoiceTest, CheckpointsThatDoNotComeFromThePathAreAnErrorThatNamesBoth) {
  const fs::path source = save(base, 100);
  const fs::path own = save(run, 110);

  EXPECT_THAT(error_of([&] { choose(source.string()); }),
              AllOf(HasSubstr(own.parent_path().string()), HasSubstr("step_00000110"),
                    HasSubstr(source.string()), HasSubstr("checkpoint.resume=auto"),
                    HasSubstr("give run.dir a new folder")));
}

TEST_F(CheckpointChoiceTest, ARunGoesBackToItsOwnOnceAndThenOn) {
  const fs::path one = save(run, 100), two = save(run, 200);
  save(run, 300);

  const CheckpointChoice back = choose(one.string());

  EXPECT_THAT(back.candidates, ElementsAre(one));
  EXPECT_TRUE(back.of_this_run);
  EXPECT_THAT(back.reason, HasSubstr("sets aside step_00000300, step_00000200"));

  for (const int64_t step : {200, 300}) set_aside(run / "checkpoints" / step_name(step));
  const fs::path next = save(run, 150, {*back.origin});

  const CheckpointChoice on = choose(one.string());

  EXPECT_THAT(on.candidates, ElementsAre(next, one));
  EXPECT_THAT(on.reason, HasSubstr("this run came from"));
}

TEST_F(CheckpointChoiceTest, TheNewestOfTheRunItselfIsWhereItGoesOn) {
  const fs::path one = save(run, 100), two = save(run, 200);

  for (const fs::path& path : {run, two, run / "checkpoints" / "latest"}) {
    const CheckpointChoice choice = choose(path.string());

    EXPECT_THAT(choice.candidates, ElementsAre(two, one));
    EXPECT_FALSE(choice.origin);
  }
}

// A copied run is told of the folder that it was copied from.
TEST_F(CheckpointChoiceTest, ACopyKnowsItsOwnCheckpointsByTheirContents) {
  const fs::path one = save(run, 100);
  save(run, 200);
  fs::copy(run, base, fs::copy_options::recursive | fs::copy_options::copy_symlinks);

  const CheckpointChoice choice = choose((base / "checkpoints" / "step_00000100").string());

  EXPECT_THAT(choice.candidates, ElementsAre(one));
  EXPECT_TRUE(choice.of_this_run);
}

TEST_F(CheckpointChoiceTest, GoingToWhatWasSetAsideSetsAsideEverythingElse) {
  save(run, 100);
  const fs::path aside = run / "checkpoints" / "step_00000300.abandoned";
  fs::rename(save(run, 300), aside);
  save(run, 150);

  const CheckpointChoice choice = choose(aside.string());
  Checkpoints checkpoints(run / "checkpoints", /*keep=*/1, dist);
  FakeRank rank(ParallelLayout(1, 1, 1), 0);
  checkpoints.resume(choice, rank.tensors());
  checkpoints.save(test::fake_state(310), rank.tensors());

  EXPECT_THAT(choice.candidates, ElementsAre(aside));
  for (const char* name : {"step_00000100.abandoned", "step_00000150.abandoned",
                           "step_00000300.abandoned", "step_00000310"}) {
    EXPECT_TRUE(fs::exists(run / "checkpoints" / name)) << name;
  }
}

TEST_F(CheckpointChoiceTest, InferenceTakesTheNewestOrThePathAlone) {
  save(run, 1);
  const fs::path two = save(run, 2), source = save(base, 100);
  const auto choose_for = [&](const std::string& wish) {
    return choose_checkpoint(run, wish, CheckpointUse::inference).candidates;
  };

  EXPECT_THAT(choose_for("auto"), ElementsAre(two));
  EXPECT_THAT(choose_for("none"), ElementsAre(two));
  EXPECT_THAT(choose_for(base.string()), ElementsAre(source));
  fs::remove_all(run);
  EXPECT_THAT(error_of([&] { choose_for("auto"); }), HasSubstr("holds no checkpoint"));
}

TEST_F(CheckpointChoiceTest, TheFirstRanksChoiceReachesAllAsItIs) {
  save(run, 100);
  save(run, 200);
  const std::string path = (run / "checkpoints" / "step_00000100").string();

  EXPECT_EQ(choose_checkpoint_together(dist.world(), run, path, CheckpointUse::training),
            choose(path));
}

}  // namespace
}  // namespace switchyard
