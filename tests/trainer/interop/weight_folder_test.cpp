#include "trainer/interop/weight_folder.h"

#include <gmock/gmock.h>

#include <fstream>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/temporary_folder.h"

namespace switchyard {
namespace {

using safetensors::Declaration;
using safetensors::Element;
using test::error_of;
using test::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;

class WeightFolderTest : public testing::Test {
 protected:
  // Tensors a, b, c of 4, 4 and 8 bytes.
  void write(int64_t shard_bytes) const {
    WeightFolderWriter writer(
        folder_.path(),
        {{"a", Element::f32, {1}}, {"b", Element::f32, {1}}, {"c", Element::f32, {2, 1}}},
        shard_bytes);
    float value = 0.0f;
    for (size_t shard = 0; shard < writer.num_shards(); ++shard) {
      const auto file = writer.open(shard);
      for (const Declaration& tensor : writer.tensors_of(shard)) {
        for (int64_t i = 0; i < tensor.shape[0]; ++i) {
          file->write(tensor.name, std::vector<float>{value += 1.0f});
        }
      }
      file->publish();
    }
    writer.write_index();
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  }
  void replace_in_index(const std::string& from, const std::string& to) const {
    const auto path = folder_.path() / "model.safetensors.index.json";
    std::ifstream file(path);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    text.replace(text.find(from), from.size(), to);
    std::ofstream(path) << text;
  }
  std::string error() const {
    return error_of([&] { WeightFolder folder(folder_.path()); });
  }

  TemporaryFolder folder_;
};

TEST_F(WeightFolderTest, OneFileNeedsNoIndex) {
  write(1 << 20);

  EXPECT_THAT(names(), ElementsAre("model.safetensors"));
  std::vector<float> values(2);
  WeightFolder(folder_.path()).read("c", 0, values);
  EXPECT_THAT(values, ElementsAre(3.0f, 4.0f));
}

TEST_F(WeightFolderTest, ShardsHoldAtMostTheirBytesOrOneTensor) {
  write(8);

  EXPECT_THAT(names(),
              ElementsAre("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                          "model.safetensors.index.json"));
  const WeightFolder folder(folder_.path());
  EXPECT_EQ(folder.tensors().size(), 3u);
  EXPECT_THAT(folder.tensors().at("c")->shape, ElementsAre(2, 1));
  float value = 0.0f;
  folder.read("b", 0, {&value, 1});
  EXPECT_EQ(value, 2.0f);
  folder.read("c", 1, {&value, 1});
  EXPECT_EQ(value, 4.0f);
}

TEST_F(WeightFolderTest, ATensorLargerThanAShardHasItsOwn) {
  write(1);
  EXPECT_EQ(names().size(), 4u);
}

TEST_F(WeightFolderTest, ListsWhatTheIndexAndTheFilesDoNotShare) {
  write(8);
  replace_in_index("\"b\": \"model-00001-of-00002", "\"b\": \"model-00003-of-00002");
  EXPECT_THAT(error(), HasSubstr("index.json: files that it lists are missing: "
                                 "model-00003-of-00002.safetensors"));
  write(8);
  replace_in_index("\"b\": \"model-00001", "\"b\": \"model-00002");
  EXPECT_THAT(error(), HasSubstr("tensors that it lists are missing: b in model-00002"));
  write(8);
  replace_in_index("\"b\"", "\"d\"");
  EXPECT_THAT(error(), HasSubstr("tensors that it lists are missing: d in model-00001"));
  write(8);
  replace_in_index("\"b\": \"model-00001-of-00002.safetensors\",", "");
  EXPECT_THAT(error(), HasSubstr("does not list these tensors of its files: b"));
}

TEST_F(WeightFolderTest, RefusesAnIndexThatIsNone) {
  EXPECT_THAT(error(), HasSubstr("has neither model.safetensors nor model.safetensors.index.json"));
  write(8);
  replace_in_index("\"model-00001-of-00002.safetensors\"", "\"../model.safetensors\"");
  EXPECT_THAT(error(), HasSubstr("the file of a is not a file's name"));
  std::ofstream(folder_.path() / "model.safetensors.index.json") << "{\"weight_map\": ";
  EXPECT_THAT(error(), HasSubstr("it has no weight_map"));
}

TEST_F(WeightFolderTest, RefusesATensorThatIsInTwoFiles) {
  write(8);
  std::filesystem::copy_file(folder_.path() / "model-00001-of-00002.safetensors",
                             folder_.path() / "model-00003-of-00003.safetensors");
  replace_in_index("\"c\": ", "\"e\": \"model-00003-of-00003.safetensors\",\n\"c\": ");
  EXPECT_THAT(error(), HasSubstr("tensor a is in"));
}

}  // namespace
}  // namespace switchyard
