#include "trainer/hashing/hash_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_tensors.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/hdf5.h"
#include "trainer/hashing/random_projection.h"

namespace switchyard {
namespace {

using test::error_of;
using testing::HasSubstr;

class HashWeightsTest : public testing::Test {
 protected:
  HashWeightsTest() {
    model_.num_layers = 3;
    model_.num_heads = 4;
    model_.num_kv_heads = 2;
    model_.head_dim = 16;
    weights_ = random_hash_weights(7, HashInit::orthogonal, model_, 64, /*dense_layers=*/1);
    weights_.checkpoint_fingerprint = "0123456789abcdef";
    weights_.settings = "sigma: 0.1\n";
  }

  // Codes of planes instead of signs.
  void take_planes(int64_t key_planes) {
    weights_.bits = static_cast<int>(32 * key_planes);
    for (size_t layer = 1; layer < 3; ++layer) {
      weights_.layers[layer] = {.keys = test::random_tensor({2, 16, 32}, layer),
                                .queries = test::random_tensor({2, 16, 32}, layer + 10),
                                .thresholds = test::random_tensor({2, 32}, layer + 20),
                                .key_planes = key_planes};
    }
  }

  std::string misfit(const ModelConfig& model, int bits, int dense_layers,
                     const std::string& fingerprint) const {
    return error_of(
        [&] { require_fitting(weights_, "w.h5", model, bits, dense_layers, fingerprint); });
  }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "hash_weights.h5";
  ModelConfig model_;
  HashWeights weights_;
};

TEST_F(HashWeightsTest, KnowsTheLengthThatItWasLearnedFrom) {
  EXPECT_EQ(weights_.learned_len(), 0);
  weights_.settings = "hash.training.seq_len: 7\nseq_len: 4096\nqueries: 64\n";
  EXPECT_EQ(weights_.learned_len(), 4096);
}

TEST_F(HashWeightsTest, WhatIsSavedIsLoadedBitForBit) {
  save_hash_weights(path_, weights_);
  const HashWeights loaded = load_hash_weights(path_);

  EXPECT_EQ(loaded.bits, 64);
  EXPECT_EQ(loaded.head_dim, 16);
  EXPECT_EQ(loaded.num_kv_heads, 2);
  EXPECT_EQ(loaded.num_layers, 3);
  EXPECT_EQ(loaded.checkpoint_fingerprint, weights_.checkpoint_fingerprint);
  EXPECT_EQ(loaded.settings, weights_.settings);
  EXPECT_FALSE(loaded.has_layer(0));
  for (size_t layer = 1; layer < 3; ++layer) {
    ASSERT_EQ(loaded.layers[layer].keys.shape(), weights_.layers[layer].keys.shape());
    EXPECT_EQ(std::memcmp(loaded.layers[layer].keys.data<float>(),
                          weights_.layers[layer].keys.data<float>(),
                          weights_.layers[layer].keys.view().num_bytes()),
              0);
  }
  EXPECT_FALSE(std::filesystem::exists(path_.string() + ".tmp"));
}

TEST_F(HashWeightsTest, PlanesOfKeysAreLoadedWithTheirColumns) {
  take_planes(3);
  save_hash_weights(path_, weights_);
  const HashWeights loaded = load_hash_weights(path_);

  EXPECT_EQ(loaded.bits, 96);
  EXPECT_EQ(loaded.key_planes(), 3);
  for (size_t layer = 1; layer < 3; ++layer) {
    for (const auto& [name, tensor] : kHashTensors) {
      EXPECT_EQ(test::to_floats(loaded.layers[layer].*tensor),
                test::to_floats(weights_.layers[layer].*tensor))
          << name;
    }
    EXPECT_EQ(loaded.layers[layer].projection().bits(), 96);
  }
}

TEST_F(HashWeightsTest, PlanesThatDoNotDivideTheBitsAreRefused) {
  for (const auto& [planes, error] :
       {std::pair(3, "no multiple of 32 for each of the 3 key_planes; learn the weights again"),
        std::pair(4, "no multiple of 32 for each of the 4 key_planes"),
        std::pair(5, "key_planes is 5, which is not from 1 to 4"), std::pair(1, "was altered")}) {
    hdf5::File file = hdf5::File::create(path_);
    file.set_string("format", "switchyard.hash_weights");
    file.set_int("version", 3);
    for (const auto& [name, value] :
         {std::pair("bits", 64), std::pair("head_dim", 16), std::pair("num_kv_heads", 2),
          std::pair("num_layers", 3), std::pair("key_planes", planes), std::pair("crc32c", 1)}) {
      file.set_int(name, value);
    }
    file.set_string("checkpoint_fingerprint", "");
    file.set_string("settings", "");
    file.close();
    EXPECT_THAT(error_of([&] { load_hash_weights(path_); }), HasSubstr(error));
  }
}

TEST_F(HashWeightsTest, TheSameWeightsGiveTheSameBytes) {
  take_planes(2);
  save_hash_weights(path_, weights_);
  save_hash_weights(folder_.path() / "again.h5", weights_);

  EXPECT_EQ(test::read_file(path_), test::read_file(folder_.path() / "again.h5"));
}

// All that a file holds: elements and the bits per column of each layer.
std::vector<std::vector<float>> content_of(const HashWeights& weights) {
  std::vector<std::vector<float>> content;
  for (const HashTensors& layer : weights.layers) {
    content.push_back({static_cast<float>(layer.key_planes)});
    for (const auto& [name, tensor] : kHashTensors) {
      if (layer.*tensor) content.push_back(test::to_floats(layer.*tensor));
    }
  }
  return content;
}

// Alters every 61st byte: in the superblock, attributes, object headers and elements. (Bytes that
// HDF5 leaves unused may change without any effect.)
TEST_F(HashWeightsTest, AnAlteredByteAnywhereIsNoticed) {
  for (const bool planes : {false, true}) {
    if (planes) take_planes(2);
    save_hash_weights(path_, weights_);
    const std::string intact = test::read_file(path_);
    const auto original = content_of(load_hash_weights(path_));

    for (size_t i = 0; i < intact.size(); i += 61) {
      std::string altered = intact;
      altered[i] = static_cast<char>(altered[i] ^ 0x10);
      test::write_file(path_, altered);
      const std::string error = error_of(
          [&] { require(content_of(load_hash_weights(path_)) == original, "other elements"); });
      EXPECT_THAT(error, testing::Not(HasSubstr("other elements"))) << "byte " << i;
    }
  }
}

TEST_F(HashWeightsTest, AnAlteredElementIsNamedAsSuch) {
  save_hash_weights(path_, weights_);
  std::string bytes = test::read_file(path_);
  const float* values = weights_.layers[2].keys.data<float>();
  const std::string element(reinterpret_cast<const char*>(values + 5), 16);
  const size_t place = bytes.find(element);
  ASSERT_NE(place, std::string::npos);
  bytes[place] = static_cast<char>(bytes[place] ^ 1);
  test::write_file(path_, bytes);

  EXPECT_THAT(error_of([&] { load_hash_weights(path_); }), HasSubstr("was altered"));
}

TEST_F(HashWeightsTest, ATruncatedFileIsAnErrorThatNamesIt) {
  save_hash_weights(path_, weights_);
  const std::string intact = test::read_file(path_);
  for (const size_t size : {intact.size() - 1, intact.size() / 2, size_t{100}, size_t{0}}) {
    test::write_file(path_, std::string_view(intact).substr(0, size));
    EXPECT_THAT(error_of([&] { load_hash_weights(path_); }), HasSubstr("hash_weights.h5")) << size;
  }
}

TEST_F(HashWeightsTest, AMissingFileNamesTheCommandThatMakesIt) {
  EXPECT_THAT(error_of([&] { load_hash_weights(path_); }), HasSubstr("train-hash"));
}

TEST_F(HashWeightsTest, AnotherHdf5FileIsNotTakenForWeights) {
  hdf5::File::create(path_).close();

  EXPECT_THAT(error_of([&] { load_hash_weights(path_); }), HasSubstr("not a file of hash weights"));
}

// Two bytes could claim any size, and the checksum is compared after all layers are read.
TEST_F(HashWeightsTest, CountsThatNoFileCanHoldAreRefused) {
  const auto error_with = [&](const char* name, int64_t value) {
    hdf5::File file = hdf5::File::create(path_);
    file.set_string("format", "switchyard.hash_weights");
    file.set_int("version", 1);
    for (const char* other : {"bits", "head_dim", "num_kv_heads", "num_layers"}) {
      file.set_int(other, std::string_view(other) == name ? value : 4);
    }
    file.set_string("checkpoint_fingerprint", "x");
    file.set_string("settings", "x");
    const hdf5::VirtualSource elsewhere{"other.h5", "x", {64}, {{0}, {64}}, {{0, 0, 0}, {4, 4, 4}}};
    file.create_virtual_dataset("layers.0/hash_weight", hdf5::Element::f32, {4, 4, 4},
                                {&elsewhere, 1});
    file.close();
    return error_of([&] { load_hash_weights(path_); });
  };

  for (const char* name : {"bits", "head_dim", "num_kv_heads", "num_layers"}) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, (int64_t{1} << 32) + 4}) {
      EXPECT_THAT(error_with(name, value), HasSubstr(fmt::format("{} is {}", name, value)));
    }
  }
  EXPECT_THAT(error_with("num_layers", int64_t{1} << 30), HasSubstr("not from 1 to 65536"));
  EXPECT_THAT(error_with("", 0), HasSubstr("/layers.0/hash_weight: is not contiguous"));
}

TEST_F(HashWeightsTest, WeightsThatAreNotFiniteReplaceNothing) {
  save_hash_weights(path_, weights_);
  const std::string before = test::read_file(path_);
  const auto element = [&](int head) {
    return weights_.layers[2].keys.view().rows(head, 1).data<float>() + 5;
  };
  *element(1) = std::numeric_limits<float>::quiet_NaN();

  EXPECT_THAT(error_of([&] { save_hash_weights(path_, weights_); }),
              HasSubstr("hash_weights.h5 is not written: it would hold 1 NaN, the first in layer 2 "
                        "head 1; lower hash.training.lr"));
  *element(0) = std::numeric_limits<float>::infinity();
  EXPECT_THAT(error_of([&] { save_hash_weights(path_, weights_); }),
              HasSubstr("1 NaN and 1 infinity, the first in layer 2 head 0"));
  EXPECT_EQ(test::read_file(path_), before);
  EXPECT_FALSE(std::filesystem::exists(path_.string() + ".tmp"));
}

TEST_F(HashWeightsTest, WhatIsNotFiniteIsFoundInEveryTensorAndTheRateIsTheObjectives) {
  for (const auto& [name, tensor] : kHashTensors) {
    take_planes(1);
    (weights_.layers[1].*tensor).data<float>()[3] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_THAT(error_of([&] { save_hash_weights(path_, weights_); }),
                HasSubstr("it would hold 1 NaN, the first in layer 1 head 0; lower "
                          "hash.training.ranking.lr"))
        << name;
  }
}

// As programs wrote planes that had one bit of a key per column alone.
TEST_F(HashWeightsTest, FilesOfVersionTwoAreRead) {
  const std::string header = "32 2 1 1 0123456789abcdef none";
  const std::vector<float> keys(64, 0.5f), queries(64, 0.25f), thresholds(32, 2.0f);
  const int layer = 0;
  uint32_t crc = crc32c(std::as_bytes(std::span(header)));
  crc = crc32c(std::as_bytes(std::span(&layer, 1)), crc);
  hdf5::File file = hdf5::File::create(path_);
  const auto dataset = [&](const char* name, std::vector<int64_t> shape,
                           const std::vector<float>& values) {
    crc = crc32c(std::as_bytes(std::span(values)), crc);
    file.create_dataset(name, hdf5::Element::f32, std::move(shape)).write(std::span(values));
  };
  dataset("layers.0/hash_weight", {1, 2, 32}, keys);
  dataset("layers.0/query_weight", {1, 2, 32}, queries);
  dataset("layers.0/threshold", {1, 32}, thresholds);
  file.set_string("format", "switchyard.hash_weights");
  file.set_string("checkpoint_fingerprint", "0123456789abcdef");
  file.set_string("settings", "none");
  for (const auto& [name, value] :
       {std::pair("version", int64_t{2}), std::pair("bits", int64_t{32}),
        std::pair("head_dim", int64_t{2}), std::pair("num_kv_heads", int64_t{1}),
        std::pair("num_layers", int64_t{1}), std::pair("crc32c", int64_t{crc})}) {
    file.set_int(name, value);
  }
  file.close();

  const HashWeights loaded = load_hash_weights(path_);

  EXPECT_TRUE(loaded.has_planes());
  EXPECT_EQ(loaded.key_planes(), 1);
  EXPECT_EQ(content_of(loaded),
            (std::vector<std::vector<float>>{{1.0f}, keys, queries, thresholds}));
}

// Writes a file as programs did that stored everything: one layer, one head.
void write_unchecked(const std::filesystem::path& path, const std::vector<float>& values) {
  hdf5::File file = hdf5::File::create(path);
  const std::string header = "32 2 1 1 0123456789abcdef none";
  const int layer = 0;
  uint32_t crc = crc32c(std::as_bytes(std::span(header)));
  crc = crc32c(std::as_bytes(std::span(&layer, 1)), crc);
  crc = crc32c(std::as_bytes(std::span(values)), crc);
  file.set_string("format", "switchyard.hash_weights");
  file.set_string("checkpoint_fingerprint", "0123456789abcdef");
  file.set_string("settings", "none");
  file.set_int("version", 1);
  file.set_int("bits", 32);
  file.set_int("head_dim", 2);
  file.set_int("num_kv_heads", 1);
  file.set_int("num_layers", 1);
  file.set_int("crc32c", crc);
  file.create_dataset("layers.0/hash_weight", hdf5::Element::f32, {1, 2, 32})
      .write(std::span<const float>(values));
  file.close();
}

TEST_F(HashWeightsTest, StoredWeightsThatAreNotFiniteCanBeCountedButNotUsed) {
  std::vector<float> values(64, 0.5f);
  write_unchecked(path_, values);
  EXPECT_EQ(error_of([&] { load_hash_weights(path_); }), "");
  values[3] = values[40] = std::numeric_limits<float>::quiet_NaN();
  write_unchecked(path_, values);

  EXPECT_THAT(
      error_of([&] { load_hash_weights(path_); }),
      HasSubstr("hash_weights.h5 cannot be used: it holds 2 NaN, the first in layer 0 head 0"));
  EXPECT_EQ(count_not_finite(read_hash_weights(path_), 0).nan, 2);
}

TEST_F(HashWeightsTest, EveryMismatchIsNamed) {
  const std::string own = weights_.checkpoint_fingerprint;
  EXPECT_EQ(misfit(model_, 64, 1, own), "");
  EXPECT_EQ(misfit(model_, 64, 2, own), "");
  EXPECT_THAT(misfit(model_, 128, 1, own), HasSubstr("64 bits, but hash.bits is 128"));
  EXPECT_THAT(misfit(model_, 64, 0, own), HasSubstr("no weights for layer 0"));
  EXPECT_THAT(misfit(model_, 64, 1, "fedcba9876543210"), HasSubstr("fedcba9876543210"));
  ModelConfig other = model_;
  other.num_kv_heads = 4;
  EXPECT_THAT(misfit(other, 64, 1, own), HasSubstr("2 key/value heads"));
  other = model_;
  other.num_layers = 4;
  EXPECT_THAT(misfit(other, 64, 1, own), HasSubstr("3 layers"));
  other = model_;
  other.head_dim = 32;
  EXPECT_THAT(misfit(other, 64, 1, own), HasSubstr("16 as the width of a head"));
}

TEST_F(HashWeightsTest, RandomWeightsFitEveryCheckpoint) {
  weights_.checkpoint_fingerprint.clear();

  EXPECT_EQ(misfit(model_, 64, 1, "fedcba9876543210"), "");
}

}  // namespace
}  // namespace switchyard
