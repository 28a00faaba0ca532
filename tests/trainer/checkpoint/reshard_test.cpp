// All ranks of a layout in one process write a checkpoint, and all ranks of another layout read it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/support/checkpoint_fixture.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::FakeRank;

// {tp, ep, dp} of the layouts that the trainer is tested with.
struct Layout {
  int tp, ep, dp;
  ParallelLayout get() const { return {tp * dp, tp, ep}; }
};

constexpr Layout kLayouts[] = {{1, 1, 1}, {1, 1, 2}, {1, 2, 2}, {1, 4, 4}, {2, 1, 1},
                               {2, 2, 1}, {2, 4, 2}, {4, 4, 1}, {2, 8, 4}, {1, 8, 8}};

std::vector<FakeRank> make_ranks(const Layout& layout) {
  std::vector<FakeRank> ranks;
  for (int rank = 0; rank < layout.get().world_size(); ++rank) {
    ranks.emplace_back(layout.get(), rank);
  }
  return ranks;
}

void write_checkpoint(const fs::path& folder, std::vector<FakeRank>& ranks) {
  fs::create_directories(folder);
  Manifest manifest{.state = test::fake_state(5),
                    .layout = {},
                    .model_fingerprint = {},
                    .shards = {},
                    .model_file = {}};
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    CheckpointTensors tensors = ranks[rank].tensors();
    if (rank == 0) tensors.owned.push_back(tensors.replicated[0]);
    manifest.shards.push_back(
        write_shard(folder / shard_name(static_cast<int>(rank)), tensors.owned));
  }
  manifest.model_fingerprint = model_fingerprint(tensors_of(manifest.shards));
  manifest.model_file = write_model_file(folder / kModelFileName, manifest);
  write_durably(folder / kManifestName, to_text(manifest));
}

void read_checkpoint(const fs::path& folder, std::vector<FakeRank>& ranks) {
  for (FakeRank& rank : ranks) {
    rank.clear();
    CheckpointReader reader(folder);
    reader.read(rank.tensors().owned);
    reader.read(rank.tensors().replicated);
  }
}

int64_t wrong_elements(std::vector<FakeRank>& ranks, uint64_t seed) {
  int64_t wrong = 0;
  for (FakeRank& rank : ranks) wrong += rank.wrong_elements(seed);
  return wrong;
}

TEST(Reshard, EveryLayoutReadsWhatEveryOtherWroteBitForBit) {
  const test::TemporaryFolder folder;
  for (const Layout& from : kLayouts) {
    std::vector<FakeRank> writers = make_ranks(from);
    for (FakeRank& rank : writers) rank.fill(3);
    write_checkpoint(folder.path(), writers);

    for (const Layout& to : kLayouts) {
      std::vector<FakeRank> readers = make_ranks(to);
      read_checkpoint(folder.path(), readers);

      EXPECT_EQ(wrong_elements(readers, 3), 0)
          << to_string(from.get()) << " -> " << to_string(to.get());
    }
  }
}

TEST(Reshard, AChainOfLayoutsEndsWithTheBitsItBeganWith) {
  const test::TemporaryFolder folder;
  std::vector<FakeRank> ranks = make_ranks({1, 1, 1});
  for (FakeRank& rank : ranks) rank.fill(4);
  write_checkpoint(folder.path() / "0", ranks);
  int link = 0;
  for (const Layout& layout : {Layout{2, 4, 2}, Layout{1, 8, 8}, Layout{1, 1, 1}}) {
    ranks = make_ranks(layout);
    read_checkpoint(folder.path() / std::to_string(link), ranks);
    write_checkpoint(folder.path() / std::to_string(++link), ranks);
  }

  EXPECT_EQ(wrong_elements(ranks, 4), 0);
  EXPECT_EQ(test::read_file(folder.path() / "0" / "shard_00000.h5"),
            test::read_file(folder.path() / "3" / "shard_00000.h5"));
}

TEST(Reshard, TheModelFingerprintIsTheSameForEveryLayout) {
  const test::TemporaryFolder folder;
  std::set<std::string> fingerprints;
  for (const Layout& layout : kLayouts) {
    std::vector<FakeRank> ranks = make_ranks(layout);
    write_checkpoint(folder.path(), ranks);
    fingerprints.insert(CheckpointReader(folder.path()).manifest().model_fingerprint);
  }

  EXPECT_EQ(fingerprints.size(), 1u);
}

TEST(Reshard, TheModelFileShowsWholeTensorsToAnyReader) {
  const test::TemporaryFolder folder;
  for (const Layout& layout : kLayouts) {
    const fs::path path = folder.path() / to_string(layout.get());
    std::vector<FakeRank> ranks = make_ranks(layout);
    for (FakeRank& rank : ranks) rank.fill(6);
    write_checkpoint(path, ranks);
    // The model file finds its parts after the folder was moved.
    fs::rename(path, path.string() + " moved");

    const hdf5::File file = hdf5::File::open((path.string() + " moved") / fs::path(kModelFileName));

    EXPECT_EQ(file.get_int("step"), 5);
    EXPECT_EQ(file.get_string("config"), test::fake_state(5).config);
    for (const auto& tensor : test::fake_model()) {
      std::vector<std::string> kinds = tensor.state;
      kinds.push_back(kWeights);
      for (const std::string& kind : kinds) {
        const hdf5::Dataset dataset = file.dataset(kind + "/" + tensor.name);
        const auto dims = tensor.shape.dims();
        EXPECT_EQ(dataset.shape(), std::vector<int64_t>(dims.begin(), dims.end()));
        std::vector<float> values(static_cast<size_t>(dataset.num_elements()));
        dataset.read(std::span(values), dataset.whole());
        int64_t wrong = 0;
        for (size_t i = 0; i < values.size(); ++i) {
          const float expected = test::fake_value(kind, tensor.name, static_cast<int64_t>(i), 6);
          wrong += std::bit_cast<uint32_t>(values[i]) != std::bit_cast<uint32_t>(expected);
        }
        EXPECT_EQ(wrong, 0) << to_string(layout.get()) << ' ' << kind << ' ' << tensor.name;
      }
    }
  }
}

// The addresses in the manifest are those that HDF5 itself would use, and the attributes agree.
TEST(Reshard, ShardsDescribeThemselves) {
  const test::TemporaryFolder folder;
  std::vector<FakeRank> ranks = make_ranks({2, 4, 2});
  for (FakeRank& rank : ranks) rank.fill(6);
  write_checkpoint(folder.path(), ranks);
  const CheckpointReader reader(folder.path());
  for (const StoredFile& shard : reader.manifest().shards) {
    EXPECT_TRUE(reader.damage_of(shard).empty());
    const hdf5::File file = hdf5::File::open(folder.path() / shard.name);
    EXPECT_EQ(file.dataset_names().size(), shard.pieces.size());
    for (const StoredPiece& piece : shard.pieces) {
      const hdf5::Dataset dataset = file.dataset(piece.kind + "/" + piece.name);
      EXPECT_EQ(dataset.file_offset(), piece.address);
      EXPECT_EQ(dataset.get_int("crc32c"), piece.crc32c);
      EXPECT_EQ(dataset.get_ints("range"),
                (std::vector<int64_t>{piece.geometry.begin, piece.geometry.end}));
      EXPECT_EQ(dataset.num_elements(), piece.geometry.num_elements());
    }
  }
}

TEST(Reshard, AHoleInTheCheckpointIsNamed) {
  const test::TemporaryFolder folder;
  std::vector<FakeRank> ranks = make_ranks({1, 1, 2});
  write_checkpoint(folder.path(), ranks);
  Manifest manifest = CheckpointReader(folder.path()).manifest();
  manifest.shards.pop_back();
  write_durably(folder.path() / kManifestName, to_text(manifest));
  std::vector<FakeRank> one = make_ranks({1, 1, 1});

  const std::string error = test::error_of([&] { read_checkpoint(folder.path(), one); });

  EXPECT_THAT(error,
              testing::ContainsRegex("holds (no|[0-9]+ of [0-9]+ elements of) (weights|exp|muon)"));
}

// The rows of a split matrix lie apart in the file and take more than one read window.
TEST(Reshard, ColumnsOfALargeMatrixAreReadInWindows) {
  const std::vector<test::FakeTensor> model = {{"wide", {3, 700001}, ParameterGroup::sharded, 1},
                                               {"tall", {70001, 33}, ParameterGroup::sharded, 1}};
  const test::TemporaryFolder folder;
  std::vector<FakeRank> one;
  one.emplace_back(ParallelLayout(1, 1, 1), 0, model);
  one[0].fill(8);
  write_checkpoint(folder.path(), one);
  std::vector<FakeRank> four;
  for (int rank = 0; rank < 4; ++rank) four.emplace_back(ParallelLayout(4, 4, 1), rank, model);

  read_checkpoint(folder.path(), four);

  EXPECT_EQ(wrong_elements(four, 8), 0);
}

}  // namespace
}  // namespace switchyard
