#include "trainer/checkpoint/checkpoints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <thread>

#include "tests/support/checkpoint_fixture.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/shard.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::fake_state;
using test::FakeRank;
using test::flip_bit;
using test::load_checkpoint;
using testing::ElementsAre;
using testing::HasSubstr;

const ParallelLayout kOneRank(1, 1, 1);

// One rank that saves and loads.
struct CheckpointsTest : testing::Test {
  SaveResult save(int64_t step, int keep = 0) {
    FakeRank rank(kOneRank, 0);
    rank.fill(static_cast<uint64_t>(step));
    Checkpoints checkpoints(run, keep, dist);
    checkpoints.set_stage_hook(hook);
    return checkpoints.save(fake_state(step), rank.tensors());
  }
  ResumeResult resume(FakeRank& rank) {
    Checkpoints checkpoints(run, 0, dist);
    return test::resume_newest(checkpoints, folder.path(), rank.tensors(), dist);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(run)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  fs::path step_folder(int64_t step) const { return Checkpoints(run, 0, dist).folder_of(step); }

  test::TemporaryFolder folder;
  fs::path run = folder.path() / "checkpoints";
  DistributedContext dist;
  std::function<void(SaveStage)> hook;
};

TEST_F(CheckpointsTest, LoadGivesBackEveryBitAndTheState) {
  ASSERT_EQ(save(7).problem, "");
  FakeRank rank(kOneRank, 0);

  const TrainingState state = load_checkpoint(step_folder(7), rank.tensors(), dist);

  EXPECT_EQ(state, fake_state(7));
  EXPECT_EQ(rank.wrong_elements(7), 0);
  EXPECT_GT(rank.wrong_elements(8), 0);
}

TEST_F(CheckpointsTest, EqualContentsMakeEqualFiles) {
  save(7);
  const std::string shard = test::read_file(step_folder(7) / "shard_00000.h5");
  const std::string manifest = test::read_file(step_folder(7) / "manifest.json");
  // HDF5 would store times in whole seconds.
  std::this_thread::sleep_for(std::chrono::milliseconds(1010));

  save(7);

  EXPECT_EQ(test::read_file(step_folder(7) / "shard_00000.h5"), shard);
  EXPECT_EQ(test::read_file(step_folder(7) / "manifest.json"), manifest);
}

TEST_F(CheckpointsTest, LatestLinksToTheNewest) {
  save(7);
  save(8);

  EXPECT_EQ(fs::read_symlink(run / "latest"), "step_00000008");
  FakeRank rank(kOneRank, 0);
  EXPECT_EQ(load_checkpoint(run / "latest", rank.tensors(), dist).step, 8);
}

TEST_F(CheckpointsTest, TheLinkIsFollowedOnce) {
  save(7);

  EXPECT_EQ(find_checkpoint(run / "latest"), step_folder(7));
  EXPECT_EQ(find_checkpoint(run / "latest" / ""), step_folder(7));
}

TEST_F(CheckpointsTest, AReaderNoticesThatItsCheckpointIsReplacedOrGone) {
  save(7);
  const CheckpointReader reader(step_folder(7));
  reader.require_current();

  FakeRank other(kOneRank, 0);
  other.fill(8);
  ASSERT_TRUE(Checkpoints(run, 0, dist).save(fake_state(7), other.tensors()).saved);
  const std::string replaced = error_of([&] { reader.require_current(); });
  fs::remove_all(step_folder(7));
  const std::string removed = error_of([&] { reader.require_current(); });

  EXPECT_THAT(replaced, HasSubstr("step_00000007 was removed or replaced while it was read"));
  EXPECT_THAT(removed, HasSubstr("step_00000007 was removed or replaced while it was read"));
}

TEST_F(CheckpointsTest, ANewerCheckpointIsReadInsteadOfOneThatIsRemovedMeanwhile) {
  save(7);
  std::vector<fs::path> tried;
  const auto read = [&](const fs::path& checkpoint) {
    tried.push_back(checkpoint);
    if (tried.size() == 1) save(8, /*keep=*/1);
    CheckpointReader(checkpoint).require_current();
  };

  const auto newest = [&] { return checkpoints_in(run).back(); };
  read_current(newest, read);

  EXPECT_THAT(tried, ElementsAre(step_folder(7), step_folder(8)));
  const auto damaged = [](const fs::path&) { fail("damaged"); };
  EXPECT_THAT(error_of([&] { read_current(newest, damaged); }), HasSubstr("damaged"));
}

TEST_F(CheckpointsTest, KeepsTheNewestOnly) {
  for (const int64_t step : {1, 2, 3, 4}) ASSERT_TRUE(save(step, /*keep=*/2).saved);

  EXPECT_THAT(names(), ElementsAre("latest", "step_00000003", "step_00000004"));
}

TEST_F(CheckpointsTest, KeepZeroKeepsAll) {
  for (const int64_t step : {1, 2, 3}) save(step, /*keep=*/0);

  EXPECT_THAT(Checkpoints(run, 0, dist).steps(), ElementsAre(1, 2, 3));
}

TEST_F(CheckpointsTest, LaterStepsOfAnAbandonedPastAreSetAside) {
  save(100);
  save(200);

  save(150, /*keep=*/2);

  EXPECT_THAT(names(),
              ElementsAre("latest", "step_00000100", "step_00000150", "step_00000200.abandoned"));
  FakeRank rank(kOneRank, 0);
  EXPECT_EQ(resume(rank).state->step, 150);
}

TEST_F(CheckpointsTest, ThereIsNothingToResumeFromInANewRun) {
  FakeRank rank(kOneRank, 0);

  const ResumeResult result = resume(rank);

  EXPECT_FALSE(result.state.has_value());
  EXPECT_TRUE(result.notices.empty());
}

TEST_F(CheckpointsTest, SavingTheSameBytesAgainReplacesThem) {
  save(7);
  save(7);

  EXPECT_THAT(names(), ElementsAre("latest", "step_00000007"));
}

TEST_F(CheckpointsTest, OtherContentsOfTheSameStepAreSetAside) {
  save(7);
  FakeRank rank(kOneRank, 0);
  rank.fill(99);

  const SaveResult result = Checkpoints(run, 2, dist).save(fake_state(7), rank.tensors());

  EXPECT_THAT(result.notices, ElementsAre(HasSubstr("set aside as step_00000007.abandoned")));
  FakeRank loaded(kOneRank, 0);
  resume(loaded);
  EXPECT_EQ(loaded.wrong_elements(99), 0);
  EXPECT_THAT(names(), ElementsAre("latest", "step_00000007", "step_00000007.abandoned"));
}

// Pruning would otherwise remove the good one in favour of the damaged ones.
TEST_F(CheckpointsTest, EverythingBehindTheRestoredStepIsSetAsideByTheFirstSave) {
  for (const int64_t step : {100, 200, 300}) save(step);
  for (const int64_t step : {200, 300}) flip_bit(step_folder(step) / "shard_00000.h5", 5000);
  Checkpoints checkpoints(run, /*keep=*/2, dist);
  FakeRank rank(kOneRank, 0);
  EXPECT_EQ(test::resume_newest(checkpoints, folder.path(), rank.tensors(), dist).name,
            "step_00000100");

  checkpoints.save(fake_state(250), rank.tensors());

  EXPECT_THAT(names(), ElementsAre("latest", "step_00000100", "step_00000200.abandoned",
                                   "step_00000250", "step_00000300.abandoned"));
}

// --- values that are not finite ---

TEST_F(CheckpointsTest, ValuesThatAreNotFiniteAreNeverSaved) {
  save(7);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    FakeRank rank(kOneRank, 0);
    CheckpointTensors tensors = rank.tensors();
    tensors.owned.at(4).data.back() = bad;

    const SaveResult result = Checkpoints(run, /*keep=*/1, dist).save(fake_state(8), tensors);

    EXPECT_FALSE(result.saved);
    EXPECT_FALSE(result.is_finite);
    EXPECT_THAT(result.problem, HasSubstr(tensors.owned[4].kind + ' ' + tensors.owned[4].name));
    EXPECT_THAT(names(), ElementsAre("latest", "step_00000007"));
  }
}

TEST_F(CheckpointsTest, ABalancingBiasThatIsNotFiniteIsNotSaved) {
  FakeRank rank(kOneRank, 0);
  CheckpointTensors tensors = rank.tensors();
  tensors.replicated.at(0).data.front() = NAN;

  const SaveResult result = Checkpoints(run, 0, dist).save(fake_state(8), tensors);

  EXPECT_THAT(result.problem, HasSubstr("balancing_bias moe_layers.0 holds 1 NaN"));
}

// --- copies without links ---

TEST_F(CheckpointsTest, AStaleLinkLeadsToTheNewestAgain) {
  save(7);
  save(8);
  fs::remove(run / "latest");
  fs::create_symlink("step_00000007", run / "latest");

  Checkpoints(run, 0, dist).tidy();

  EXPECT_EQ(fs::read_symlink(run / "latest"), "step_00000008");
}

struct CopyWithoutLinks : CheckpointsTest {
  // As `cp -rL` leaves it.
  void make_latest_a_folder() {
    fs::remove(run / "latest");
    fs::copy(step_folder(7), run / "latest", fs::copy_options::recursive);
  }
  // A run that goes on, saves step 8 and keeps one checkpoint.
  std::vector<std::string> go_on() {
    Checkpoints checkpoints(run, /*keep=*/1, dist);
    const std::vector<std::string> notices = checkpoints.tidy();
    FakeRank rank(kOneRank, 0);
    EXPECT_EQ(test::resume_newest(checkpoints, folder.path(), rank.tensors(), dist).state,
              fake_state(7));
    EXPECT_EQ(rank.wrong_elements(7), 0);
    EXPECT_TRUE(checkpoints.save(fake_state(8), rank.tensors()).saved);
    return notices;
  }
};

TEST_F(CopyWithoutLinks, AFolderThatCopiesACheckpointGoes) {
  save(7);
  make_latest_a_folder();

  EXPECT_TRUE(go_on().empty());

  EXPECT_THAT(names(), ElementsAre("latest", "step_00000008"));
  EXPECT_EQ(fs::read_symlink(run / "latest"), "step_00000008");
}

TEST_F(CopyWithoutLinks, TheOnlyCopyOfACheckpointGetsItsName) {
  save(7);
  make_latest_a_folder();
  fs::remove_all(step_folder(7));

  EXPECT_THAT(checkpoints_in(run), ElementsAre(run / "latest"));
  EXPECT_THAT(go_on(), ElementsAre(HasSubstr("renamed to step_00000007")));

  EXPECT_THAT(names(), ElementsAre("latest", "step_00000008"));
}

TEST_F(CopyWithoutLinks, ACopyOfWhatIsCutOffStays) {
  save(7);
  make_latest_a_folder();
  fs::resize_file(step_folder(7) / "shard_00000.h5", 100);

  EXPECT_THAT(settle_latest(run), HasSubstr("renamed to step_00000007.abandoned"));

  FakeRank rank(kOneRank, 0);
  EXPECT_EQ(load_checkpoint(run / "step_00000007.abandoned", rank.tensors(), dist), fake_state(7));
}

TEST_F(CopyWithoutLinks, OtherFoldersAndFilesKeepTheirContents) {
  save(7);
  fs::remove(run / "latest");
  test::write_file(run / "latest" / "notes", "mine");
  EXPECT_THAT(go_on(), ElementsAre(HasSubstr("renamed to latest.abandoned")));
  EXPECT_EQ(test::read_file(run / "latest.abandoned" / "notes"), "mine");

  fs::remove(run / "latest");
  test::write_file(run / "latest", "my notes");
  EXPECT_THAT(settle_latest(run), HasSubstr("renamed to latest.abandoned.abandoned"));
  EXPECT_EQ(test::read_file(run / "latest.abandoned.abandoned"), "my notes");
}

TEST_F(CopyWithoutLinks, AFileThatWasTheLinkADanglingLinkAndNoneDoNotMatter) {
  for (const char* kind : {"file", "dangling", "none"}) {
    SCOPED_TRACE(kind);
    fs::remove_all(run);
    save(7);
    fs::remove(run / "latest");
    if (kind == std::string("file")) test::write_file(run / "latest", "step_00000007");
    if (kind == std::string("dangling")) fs::create_symlink("step_00000001", run / "latest");

    EXPECT_TRUE(go_on().empty());

    EXPECT_THAT(names(), ElementsAre("latest", "step_00000008"));
    EXPECT_EQ(fs::read_symlink(run / "latest"), "step_00000008");
  }
}

TEST_F(CopyWithoutLinks, WithoutLinksPruningGoesOnAndTheReasonIsSaidOnce) {
  Checkpoints checkpoints(run, /*keep=*/1, dist);
  FakeRank rank(kOneRank, 0);
  rank.fill(1);
  // A folder with contents cannot be replaced by a link.
  test::write_file(run / "latest" / "notes", "mine");

  const SaveResult first = checkpoints.save(fake_state(7), rank.tensors());
  const SaveResult second = checkpoints.save(fake_state(8), rank.tensors());

  EXPECT_THAT(first.notices, ElementsAre(HasSubstr("cannot make the link")));
  EXPECT_TRUE(second.notices.empty());
  EXPECT_THAT(names(), ElementsAre("latest", "step_00000008"));
}

// --- failing saves ---

class FailingSave : public CheckpointsTest, public testing::WithParamInterface<SaveStage> {};

TEST_P(FailingSave, LeavesThePreviousCheckpointAndNoRemains) {
  save(7);
  hook = [](SaveStage stage) { require(stage != GetParam(), "injected"); };

  const SaveResult result = save(8, /*keep=*/1);

  EXPECT_THAT(result.problem, HasSubstr("injected"));
  EXPECT_FALSE(result.saved);
  EXPECT_THAT(names(), ElementsAre("latest", "step_00000007"));
  FakeRank rank(kOneRank, 0);
  EXPECT_EQ(resume(rank).state->step, 7);
  EXPECT_EQ(rank.wrong_elements(7), 0);
}

TEST_P(FailingSave, TheNextOneSucceeds) {
  hook = [](SaveStage stage) { require(stage != GetParam(), "injected"); };
  save(7);
  hook = {};

  EXPECT_EQ(save(8).problem, "");

  EXPECT_THAT(names(), ElementsAre("latest", "step_00000008"));
}

INSTANTIATE_TEST_SUITE_P(Stages, FailingSave,
                         testing::Values(SaveStage::prepare, SaveStage::shard, SaveStage::manifest,
                                         SaveStage::publish));

TEST_F(CheckpointsTest, AFailureAfterTheRenameKeepsTheNewCheckpoint) {
  save(7);
  hook = [](SaveStage stage) { require(stage != SaveStage::prune, "injected"); };

  const SaveResult result = save(8, /*keep=*/1);

  EXPECT_TRUE(result.saved);
  EXPECT_THAT(result.notices, ElementsAre(HasSubstr("injected")));
  EXPECT_THAT(names(), ElementsAre("latest", "step_00000007", "step_00000008"));
}

class KilledSave : public FailingSave {};

TEST_P(KilledSave, IsIgnoredAndItsRemainsAreCleaned) {
  save(7);
  const pid_t child = ::fork();
  if (child == 0) {
    hook = [](SaveStage stage) {
      if (stage == GetParam()) ::_exit(0);
    };
    save(8);
    ::_exit(1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  FakeRank rank(kOneRank, 0);

  const ResumeResult result = resume(rank);

  const int64_t newest = GetParam() < SaveStage::link ? 7 : 8;
  EXPECT_EQ(result.state->step, newest);
  EXPECT_EQ(rank.wrong_elements(static_cast<uint64_t>(newest)), 0);
  for (const std::string& name : names()) EXPECT_FALSE(name.ends_with(".tmp")) << name;
}

INSTANTIATE_TEST_SUITE_P(Stages, KilledSave,
                         testing::Values(SaveStage::shard, SaveStage::manifest, SaveStage::publish,
                                         SaveStage::link, SaveStage::prune));

// The largest file that this process may write. SIGXFSZ is ignored, so that the writes fail as they
// do on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &former_);
    const rlimit limit{bytes, former_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &former_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit former_{};
  void (*handler_)(int);
};

// The limits leave room for nothing, for a part of the description, and for all but its end.
class NoRoom : public CheckpointsTest, public testing::WithParamInterface<int64_t> {};

TEST_P(NoRoom, FailsWithTheReasonAndLosesNothing) {
  ASSERT_TRUE(save(7).saved);
  SaveResult result;
  {
    const FileSizeLimit limit(static_cast<rlim_t>(GetParam()));
    result = save(8, /*keep=*/1);
  }

  EXPECT_FALSE(result.saved);
  EXPECT_THAT(result.problem, HasSubstr("File too large"));
  EXPECT_THAT(result.problem, HasSubstr(".tmp/"));
  EXPECT_THAT(names(), ElementsAre("latest", "step_00000007"));
  EXPECT_TRUE(save(9).saved);
}

INSTANTIATE_TEST_SUITE_P(Limits, NoRoom, testing::Values(0, 1000, 20000, 40000));

TEST_F(CheckpointsTest, AFullDiskFailsTheSaveAndLosesNothing) {
  // The test needs the right to mount a file system.
  fs::create_directories(run);
  const std::string mount = "mount -t tmpfs -o size=512k tmpfs " + run.string() + " 2>/dev/null";
  if (::geteuid() != 0 || std::system(mount.c_str()) != 0) {
    GTEST_SKIP() << "this user cannot mount a small file system";
  }
  std::vector<SaveResult> results;
  for (int64_t step = 1; step <= 8; ++step) results.push_back(save(step));
  FakeRank rank(kOneRank, 0);
  const ResumeResult resumed = resume(rank);
  const auto saved = Checkpoints(run, 0, dist).steps();
  ASSERT_EQ(std::system(("umount " + run.string()).c_str()), 0);

  ASSERT_GE(saved.size(), 1u);
  ASSERT_LT(saved.size(), 8u);
  EXPECT_EQ(resumed.state->step, saved.back());
  EXPECT_EQ(rank.wrong_elements(static_cast<uint64_t>(saved.back())), 0);
  EXPECT_FALSE(results.back().saved);
  EXPECT_THAT(results.back().problem, HasSubstr("No space left on device"));
}

// --- damage ---

TEST_F(CheckpointsTest, AFlippedBitInATensorIsNamed) {
  save(7);
  const CheckpointReader reader(step_folder(7));
  const StoredFile& shard = reader.manifest().shards.at(0);
  const StoredPiece& piece = shard.pieces.at(5);
  flip_bit(step_folder(7) / shard.name, static_cast<size_t>(piece.address) + 17);
  FakeRank rank(kOneRank, 0);

  const std::string error =
      error_of([&] { load_checkpoint(step_folder(7), rank.tensors(), dist); });

  EXPECT_THAT(error, HasSubstr("step_00000007/shard_00000.h5"));
  EXPECT_THAT(error, HasSubstr(piece.kind + ' ' + piece.name));
}

TEST_F(CheckpointsTest, AFlippedBitAnywhereInAShardOrTheManifestIsDetected) {
  save(7);
  for (const char* name : {"shard_00000.h5", "manifest.json"}) {
    const fs::path path = step_folder(7) / name;
    const size_t size = fs::file_size(path);
    for (size_t byte = 0; byte < size; byte += 1 + size / 97) {
      flip_bit(path, byte);
      FakeRank rank(kOneRank, 0);

      const std::string error =
          error_of([&] { load_checkpoint(step_folder(7), rank.tensors(), dist); });

      EXPECT_THAT(error, HasSubstr(name)) << "byte " << byte;
      flip_bit(path, byte);
    }
  }
  FakeRank rank(kOneRank, 0);
  EXPECT_NO_THROW(load_checkpoint(step_folder(7), rank.tensors(), dist));
}

TEST_F(CheckpointsTest, TruncatedAndMissingShardsAreNamed) {
  save(7);
  const fs::path path = step_folder(7) / "shard_00000.h5";
  FakeRank rank(kOneRank, 0);
  const auto load = [&] { load_checkpoint(step_folder(7), rank.tensors(), dist); };
  fs::resize_file(path, fs::file_size(path) - 1);
  const std::string truncated = error_of(load);
  fs::remove(path);
  const std::string missing = error_of(load);

  EXPECT_THAT(truncated, HasSubstr("shard_00000.h5 has "));
  EXPECT_THAT(missing, HasSubstr("shard_00000.h5 is missing"));
}

TEST_F(CheckpointsTest, AnotherFormatVersionIsNamed) {
  save(7);
  const fs::path path = step_folder(7) / "manifest.json";
  std::string text = test::read_file(path);
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 9");
  test::write_file(path, text);
  FakeRank rank(kOneRank, 0);

  const std::string error =
      error_of([&] { load_checkpoint(step_folder(7), rank.tensors(), dist); });

  EXPECT_THAT(error, HasSubstr("has format version 9; this program reads version 1"));
}

TEST_F(CheckpointsTest, AFolderWithoutAManifestIsNoCheckpoint) {
  fs::create_directories(run / "step_00000003");
  FakeRank rank(kOneRank, 0);

  const std::string error =
      error_of([&] { load_checkpoint(run / "step_00000003", rank.tensors(), dist); });

  EXPECT_THAT(
      error, HasSubstr("step_00000003 is neither a checkpoint nor a run: it has no manifest.json"));
}

TEST_F(CheckpointsTest, ResumeFallsBackToTheNewestIntactOneAndSaysSo) {
  for (const int64_t step : {1, 2, 3}) save(step);
  flip_bit(step_folder(3) / "shard_00000.h5", 5000);
  fs::remove(step_folder(2) / "manifest.json");
  FakeRank rank(kOneRank, 0);

  const ResumeResult result = resume(rank);

  EXPECT_EQ(result.name, "step_00000001");
  EXPECT_EQ(rank.wrong_elements(1), 0);
  EXPECT_THAT(result.notices, ElementsAre(HasSubstr("passed over step_00000003: "),
                                          HasSubstr("passed over step_00000002: ")));
}

TEST_F(CheckpointsTest, ResumeRefusesToStartAfreshOverDamagedCheckpoints) {
  save(1);
  flip_bit(step_folder(1) / "shard_00000.h5", 5000);
  FakeRank rank(kOneRank, 0);

  EXPECT_THAT(error_of([&] { resume(rank); }), HasSubstr("none of the checkpoints"));
}

// --- another model ---

TEST_F(CheckpointsTest, AnotherShapeIsNamedWithBothShapes) {
  save(7);
  auto model = test::fake_model();
  model[1].shape = {16, 10};
  FakeRank rank(kOneRank, 0, model);

  const std::string error = error_of([&] { resume(rank); });

  EXPECT_THAT(error, HasSubstr("weights layers.0.attention.q.weight has shape [16, 8]"));
  EXPECT_THAT(error, HasSubstr("[16, 10] in this model"));
}

TEST_F(CheckpointsTest, ATensorThatTheModelLacksIsNamed) {
  save(7);
  auto model = test::fake_model();
  model.pop_back();
  FakeRank rank(kOneRank, 0, model);

  EXPECT_THAT(error_of([&] { resume(rank); }),
              HasSubstr("weights layers.0.moe.experts.down.weight [8, 8, 11], which this model"));
}

TEST_F(CheckpointsTest, ATensorThatTheCheckpointLacksIsNamed) {
  auto model = test::fake_model();
  for (test::FakeTensor& tensor : model) tensor.state = {kExpAvg};
  FakeRank sgd(kOneRank, 0, model);
  Checkpoints(run, 2, dist).save(fake_state(7), sgd.tensors());
  FakeRank adam(kOneRank, 0);

  EXPECT_THAT(error_of([&] { resume(adam); }), HasSubstr("holds no exp_avg_sq embedding.weight"));
}

TEST_F(CheckpointsTest, AnIncompleteSetOfPiecesIsNotSaved) {
  FakeRank rank(kOneRank, 0);
  CheckpointTensors tensors = rank.tensors();
  tensors.owned[0].geometry.end -= 1;
  tensors.owned[0].data = tensors.owned[0].data.first(tensors.owned[0].data.size() - 1);

  const SaveResult result = Checkpoints(run, 2, dist).save(fake_state(7), tensors);

  EXPECT_FALSE(result.saved);
  EXPECT_THAT(result.problem, HasSubstr("295 of 296 elements are in the shards"));
}

TEST_F(CheckpointsTest, WeightsAloneAreRoundedToTheDtypeOfTheParameters) {
  FakeRank rank(kOneRank, 0);
  rank.clear();
  CheckpointTensors saved = rank.tensors();
  for (TensorPiece& piece : saved.owned) {
    for (size_t i = 0; i < piece.data.size(); ++i)
      piece.data[i] = 1.0f + 0.001f * static_cast<float>(i);
  }
  Checkpoints(run, 2, dist).save(fake_state(7), saved);
  Stream stream;
  ParameterStore store;
  for (const auto& tensor : test::fake_model()) {
    const PieceGeometry whole = whole_tensor(tensor.shape);
    store.add({.name = tensor.name,
               .global_shape = tensor.shape,
               .offset = whole.offset,
               .extent = whole.extent,
               .dtype = tensor.shape.rank() == 1 ? DType::f32 : DType::bf16,
               .init = {}});
  }
  store.materialize(stream, 1, 1);

  const TrainingState state = load_weights(stream, step_folder(7), store, {}, dist);

  EXPECT_EQ(state.step, 7);
  for (const Parameter& parameter : store.parameters()) {
    for (int64_t i = 0; i < parameter.value.num_elements(); ++i) {
      const float value = 1.0f + 0.001f * static_cast<float>(i);
      if (parameter.spec.dtype == DType::f32) {
        EXPECT_EQ(parameter.value.data<float>()[i], value);
      } else {
        EXPECT_EQ(static_cast<float>(parameter.value.data<bfloat16>()[i]),
                  static_cast<float>(bfloat16(value)));
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
