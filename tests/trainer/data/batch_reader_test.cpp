#include "trainer/data/batch_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <string>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_tensors.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

using test::error_of;
using test::to_vector;

constexpr int64_t kSeqLen = 16, kGlobalBatch = 4;

std::vector<int32_t> values_of(const GlobalBatch& batch) {
  std::vector<int32_t> values = {static_cast<int32_t>(batch.target_tokens)};
  for (const MicroBatch& micro : batch.micro_batches) {
    for (const Tensor* tensor : {&micro.tokens, &micro.targets, &micro.document_start}) {
      if (!*tensor) continue;
      const auto of_tensor = to_vector<int32_t>(tensor->view());
      values.insert(values.end(), of_tensor.begin(), of_tensor.end());
    }
  }
  return values;
}

class BatchReaderTest : public ::testing::Test {
 protected:
  BatchReaderTest() {
    for (const char* name : {"a.h5", "b.h5"}) write(name);
  }
  void write(const std::string& name) {
    TokenFileInfo info;
    info.vocab_size = 60000;
    info.end_of_document = 0;
    info.tokenizer = "byte";
    info.source = name;
    TokenFileWriter writer(folder_.path() / name, info);
    for (int64_t document = 0; document < 200; ++document) {
      std::vector<int32_t> tokens;
      for (int64_t i = 0; i < 40 + document % 7; ++i) {
        tokens.push_back(static_cast<int32_t>(1 + (document * 47 + i * name[0]) % 59999));
      }
      writer.append_document(tokens);
    }
    writer.finish();
  }
  DataLoaderConfig config() const {
    return {.seq_len = kSeqLen,
            .vocab_size = 60000,
            .micro_batch_size = 2,
            .global_batch_size = kGlobalBatch,
            .mask = AttentionMask::document,
            .seed = 7};
  }

  test::TemporaryFolder folder_;
};

TEST_F(BatchReaderTest, BatchesAreThoseOfTheLoaderFromAnyPositionOn) {
  TokenFile a(folder_.path() / "a.h5"), b(folder_.path() / "b.h5");
  const SourceFile files[] = {{.file = &a, .weight = 2.0}, {.file = &b}};
  for (const int64_t first : {int64_t{0}, 5 * kGlobalBatch}) {
    std::vector<std::vector<int32_t>> expected, seen;
    DataLoader alone(files, config());
    for (int64_t i = 0; i < 20; ++i) {
      expected.push_back(values_of(alone.load(first + i * kGlobalBatch)));
    }
    DataLoader loader(files, config());
    BatchReader reader(loader, Device{});

    for (int64_t i = 0; i < 20; ++i) {
      seen.push_back(values_of(reader.take(first + i * kGlobalBatch)));
      if (i != 9) reader.start(first + (i + 1) * kGlobalBatch);
    }

    EXPECT_EQ(seen, expected);
  }
}

TEST_F(BatchReaderTest, ABatchThatNobodyExpectedIsRead) {
  TokenFile a(folder_.path() / "a.h5");
  DataLoader loader(a, config());
  BatchReader reader(loader, Device{});
  reader.start(0);

  const GlobalBatch batch = reader.take(8);

  EXPECT_EQ(values_of(batch), values_of(loader.load(8)));
}

TEST_F(BatchReaderTest, EndsWhileItReads) {
  TokenFile a(folder_.path() / "a.h5");
  DataLoader loader(a, config());

  for (int i = 0; i < 50; ++i) {
    BatchReader reader(loader, Device{});
    reader.start(i * kGlobalBatch);
  }

  EXPECT_EQ(values_of(BatchReader(loader, Device{}).take(0)), values_of(loader.load(0)));
}

TEST_F(BatchReaderTest, WhatReadingThrewIsThrownByTheTakeOfThatBatchAlone) {
  const auto path = folder_.path() / "a.h5";
  {
    const auto tokens = hdf5::File::open(path).dataset("tokens").file_offset();
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(tokens) + 100);
    file << "damage";
  }
  TokenFile file(path);
  DataLoader loader(file, config());
  const std::string expected = error_of([&] { loader.load(0); });
  ASSERT_THAT(expected, testing::HasSubstr("is damaged"));
  BatchReader reader(loader, Device{});

  reader.start(0);
  reader.wait();

  EXPECT_EQ(error_of([&] { reader.take(0); }), expected);
}

TEST(PinTest, MemoryHoldsTheTensorsThatAreThereOneAfterTheOther) {
  MicroBatch batch;
  batch.num_sequences = 1;
  batch.seq_len = 3;
  batch.tokens = Tensor({1, 3}, DType::i32);
  batch.document_start = Tensor({1, 3}, DType::i32);
  for (int32_t t = 0; t < 3; ++t) {
    batch.tokens.data<int32_t>()[t] = 5 + t;
    batch.document_start.data<int32_t>()[t] = 70 + t;
  }

  pin(batch, std::make_shared<PinnedBuffer>(pinned_bytes(1, 3)));

  std::vector<int32_t> values(6);
  std::memcpy(values.data(), batch.pinned->data(), 6 * sizeof(int32_t));
  EXPECT_EQ(values, (std::vector<int32_t>{5, 6, 7, 70, 71, 72}));
  EXPECT_EQ(batch.pinned->num_bytes(), 9 * sizeof(int32_t));
}

}  // namespace
}  // namespace switchyard
