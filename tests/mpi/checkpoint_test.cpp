#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstdlib>

#include "mpi/mpi_test.h"
#include "tests/support/checkpoint_fixture.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/checkpoint/folder_trial.h"
#include "trainer/checkpoint/gather_text.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::fake_state;
using test::FakeRank;
using test::test_mpi;
using testing::ElementsAre;
using testing::HasSubstr;

// {tp, ep} for the number of ranks that the test runs with.
std::vector<std::pair<int, int>> layouts() {
  switch (test_mpi().world_size()) {
    case 1:
      return {{1, 1}};
    case 4:
      return {{1, 1}, {2, 4}, {1, 4}, {2, 2}, {4, 1}, {4, 4}};
    default:
      return {{1, 8}, {2, 4}, {1, 1}, {2, 8}, {4, 2}, {8, 8}};
  }
}

// A folder that all ranks share.
struct CheckpointMpiTest : testing::Test {
  CheckpointMpiTest() {
    std::string name = (fs::temp_directory_path() / "switchyard-XXXXXX").string();
    if (rank == 0 && ::mkdtemp(name.data()) == nullptr) name.clear();
    run_dir = broadcast_text(world, name);
    folder = run_dir / "checkpoints";
    require(!run_dir.empty(), "cannot make a folder");
  }
  ~CheckpointMpiTest() override {
    world.barrier(stream);
    std::error_code ignored;
    if (rank == 0) fs::remove_all(run_dir, ignored);
    world.barrier(stream);
  }

  ParallelLayout layout(int tp, int ep) const { return {test_mpi().world_size(), tp, ep}; }

  SaveResult save(int64_t step, const DistributedContext& dist, int keep = 0,
                  const std::function<void(SaveStage)>& hook = {}) {
    FakeRank own(dist.layout(), rank);
    own.fill(static_cast<uint64_t>(step));
    Checkpoints checkpoints(folder, keep, dist);
    checkpoints.set_stage_hook(hook);
    const SaveResult result = checkpoints.save(fake_state(step), own.tensors());
    world.barrier(stream);
    return result;
  }

  ResumeResult resume(FakeRank& own, const DistributedContext& dist) {
    Checkpoints checkpoints(folder, 0, dist);
    return test::resume_newest(checkpoints, run_dir, own.tensors(), dist);
  }

  // Expects that every rank has the same text.
  void expect_same(const std::string& text) {
    for (const std::string& other : gather_text(world, text)) EXPECT_EQ(other, text);
  }

  Stream stream;
  Communicator& world = test_mpi().world();
  int rank = world.rank();
  int last_rank = world.size() - 1;
  fs::path run_dir, folder;
};

TEST_F(CheckpointMpiTest, AChainThroughAllLayoutsKeepsEveryBit) {
  const ParallelLayout one(1, 1, 1);
  const DistributedContext alone;
  if (rank == 0) {
    FakeRank all(one, 0);
    all.fill(3);
    ASSERT_EQ(Checkpoints(folder, 0, alone).save(fake_state(1), all.tensors()).problem, "");
  }
  world.barrier(stream);
  int64_t step = 1;
  for (const auto& [tp, ep] : layouts()) {
    const DistributedContext dist(test_mpi(), layout(tp, ep));
    Checkpoints checkpoints(folder, /*keep=*/1, dist);
    FakeRank own(dist.layout(), rank);

    const ResumeResult resumed = test::resume_newest(checkpoints, run_dir, own.tensors(), dist);
    const SaveResult saved = checkpoints.save(fake_state(step + 1), own.tensors());

    EXPECT_EQ(resumed.state, fake_state(step));
    EXPECT_EQ(own.wrong_elements(3), 0) << to_string(dist.layout());
    EXPECT_EQ(saved.problem, "");
    ++step;
  }
  if (rank == 0) {
    FakeRank all(one, 0);
    EXPECT_EQ(resume(all, alone).state, fake_state(step));
    EXPECT_EQ(all.wrong_elements(3), 0);
  }
}

// Each rank may see another one as the newest while a run trains.
TEST_F(CheckpointMpiTest, AllRanksLoadTheCheckpointThatRank0Names) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  for (const int64_t step : {1, 2}) {
    FakeRank own(dist.layout(), rank);
    own.fill(static_cast<uint64_t>(step));
    ASSERT_TRUE(Checkpoints(folder, 0, dist).save(fake_state(step), own.tensors()).saved);
  }
  FakeRank own(dist.layout(), rank);

  const TrainingState state = test::load_checkpoint(
      folder / (rank == 0 ? "step_00000001" : "step_00000002"), own.tensors(), dist);

  EXPECT_EQ(state, fake_state(1));
  EXPECT_EQ(own.wrong_elements(1), 0);
}

TEST_F(CheckpointMpiTest, TheManifestTellsTheLayoutAndEveryRanksShard) {
  const auto [tp, ep] = layouts().back();
  const DistributedContext dist(test_mpi(), layout(tp, ep));
  ASSERT_EQ(save(5, dist).problem, "");

  const CheckpointReader reader(folder / "latest");

  const int ranks = world.size();
  EXPECT_EQ(reader.manifest().layout, (SavedLayout{ranks, tp, ep}));
  EXPECT_EQ(static_cast<int>(reader.manifest().shards.size()), ranks);
}

TEST_F(CheckpointMpiTest, AFailureOnOneRankIsKnownToAllAndLosesNothing) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  ASSERT_TRUE(save(1, dist).saved);

  const SaveResult result = save(2, dist, /*keep=*/1, [&](SaveStage stage) {
    require(stage != SaveStage::shard || rank != last_rank, "injected");
  });

  EXPECT_FALSE(result.saved);
  EXPECT_THAT(result.problem, HasSubstr("injected"));
  if (world.size() > 1) {
    EXPECT_THAT(result.problem, HasSubstr("rank " + std::to_string(last_rank)));
  }
  expect_same(result.problem);
  EXPECT_THAT(Checkpoints(folder, 0, dist).steps(), ElementsAre(1));
  EXPECT_FALSE(fs::exists(folder / "step_00000002.tmp"));
  FakeRank own(dist.layout(), rank);
  EXPECT_EQ(resume(own, dist).state, fake_state(1));
  EXPECT_EQ(own.wrong_elements(1), 0);
}

TEST_F(CheckpointMpiTest, NoRoomForOneRanksShardFailsTheSaveOnAll) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  ASSERT_TRUE(save(1, dist).saved);
  rlimit former{};
  ::getrlimit(RLIMIT_FSIZE, &former);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  if (rank == last_rank) {
    const rlimit limit{1000, former.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }

  const SaveResult failed = save(2, dist);
  ::setrlimit(RLIMIT_FSIZE, &former);
  std::signal(SIGXFSZ, handler);
  const SaveResult next = save(3, dist);

  EXPECT_FALSE(failed.saved);
  EXPECT_THAT(failed.problem, HasSubstr("File too large"));
  expect_same(failed.problem);
  EXPECT_TRUE(next.saved);
  EXPECT_THAT(Checkpoints(folder, 0, dist).steps(), ElementsAre(1, 3));
}

TEST_F(CheckpointMpiTest, AValueThatIsNotFiniteOnOneRankIsNamedOnAll) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  ASSERT_TRUE(save(1, dist).saved);
  FakeRank own(dist.layout(), rank);
  CheckpointTensors tensors = own.tensors();
  if (rank == last_rank) tensors.owned.back().data.back() = NAN;

  const SaveResult result = Checkpoints(folder, /*keep=*/1, dist).save(fake_state(2), tensors);

  EXPECT_FALSE(result.saved);
  EXPECT_THAT(result.problem, HasSubstr("holds 1 NaN"));
  expect_same(result.problem);
  EXPECT_THAT(Checkpoints(folder, 0, dist).steps(), ElementsAre(1));
}

TEST_F(CheckpointMpiTest, EveryRankTriesToWriteBeforeTheFirstStep) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  FakeRank own(dist.layout(), rank);

  const DiskRoom room = try_folder_of_checkpoints(world, folder, own.tensors());
  ASSERT_TRUE(save(1, dist).saved);
  int64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(folder / "step_00000001")) {
    bytes += static_cast<int64_t>(fs::file_size(file));
  }

  EXPECT_GE(room.checkpoint_bytes + (32 << 10), bytes);
  EXPECT_EQ(room.checkpoints, 0);
  EXPECT_GT(room.free_bytes, 0);
  EXPECT_EQ(try_folder_of_checkpoints(world, folder, own.tensors()).checkpoints, 1);
  world.barrier(stream);
  EXPECT_FALSE(fs::exists(folder / "step_trial.tmp"));
}

// The last rank's folder is another one, as on a machine that does not share it.
TEST_F(CheckpointMpiTest, ARankThatSeesAnotherFolderIsFoundBeforeTheFirstStep) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  FakeRank own(dist.layout(), rank);
  const fs::path mine = rank == last_rank && rank > 0 ? run_dir / "elsewhere" : folder;

  try {
    try_folder_of_checkpoints(world, mine, own.tensors());
    EXPECT_EQ(world.size(), 1);
  } catch (const CollectiveError& error) {
    EXPECT_THAT(error.what(), HasSubstr(fmt::format("rank {}: checkpoints cannot be written: "
                                                    "cannot open {}/elsewhere",
                                                    last_rank, run_dir.string())));
  }
}

TEST_F(CheckpointMpiTest, AllRanksFallBackFromADamagedShardTogether) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  ASSERT_TRUE(save(1, dist).saved);
  ASSERT_TRUE(save(2, dist).saved);
  const std::string damaged = fmt::format("shard_{:05d}.h5", last_rank);
  if (rank == 0) test::flip_bit(folder / "step_00000002" / damaged, 4000);
  world.barrier(stream);
  FakeRank own(dist.layout(), rank);

  const ResumeResult result = resume(own, dist);

  EXPECT_EQ(result.name, "step_00000001");
  EXPECT_EQ(own.wrong_elements(1), 0);
  ASSERT_EQ(result.notices.size(), 1u);
  EXPECT_THAT(result.notices[0], HasSubstr(damaged));
  expect_same(result.notices[0]);
}

TEST_F(CheckpointMpiTest, DamageUnderAnExplicitPathIsAnErrorOfAllRanks) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  ASSERT_TRUE(save(1, dist).saved);
  if (rank == 0) fs::remove(folder / "step_00000001" / "shard_00000.h5");
  world.barrier(stream);
  FakeRank own(dist.layout(), rank);

  EXPECT_THROW(test::load_checkpoint(folder / "step_00000001", own.tensors(), dist),
               CollectiveError);
}

TEST_F(CheckpointMpiTest, AnotherModelIsAnErrorOfAllRanks) {
  const DistributedContext dist(test_mpi(), layout(1, 1));
  ASSERT_TRUE(save(1, dist).saved);
  auto model = test::fake_model();
  model[0].shape = {38, 8};
  FakeRank other(dist.layout(), rank, model);

  try {
    resume(other, dist);
    FAIL() << "accepted";
  } catch (const CollectiveError& error) {
    EXPECT_THAT(error.what(), HasSubstr("embedding.weight has shape [37, 8] in the checkpoint"));
    EXPECT_THAT(error.what(), HasSubstr("[38, 8] in this model"));
  }
}

TEST(GatherText, KeepsTheOrderOfRanksAndUnequalLengths) {
  Communicator& world = test_mpi().world();
  const std::string mine(static_cast<size_t>(world.rank()), 'a' + static_cast<char>(world.rank()));

  const std::vector<std::string> texts = gather_text(world, mine);

  ASSERT_EQ(static_cast<int>(texts.size()), world.size());
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    EXPECT_EQ(texts[rank], std::string(rank, static_cast<char>('a' + rank)));
  }
}

}  // namespace
}  // namespace switchyard
