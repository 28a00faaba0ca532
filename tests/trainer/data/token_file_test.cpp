#include "trainer/data/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <random>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::vector<int32_t> random_tokens(size_t count, int32_t vocab_size, uint32_t seed) {
  std::minstd_rand engine(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(engine() % (vocab_size - 1)) + 1;
  return tokens;
}

std::vector<int32_t> read_all(TokenFile& file) {
  std::vector<int32_t> tokens(static_cast<size_t>(file.num_tokens()));
  file.read(0, tokens);
  return tokens;
}

class TokenFileTest : public ::testing::Test {
 protected:
  // Writes documents of the given lengths and returns all tokens; the end-of-document token is 0.
  std::vector<int32_t> write(const std::vector<size_t>& lengths, int64_t vocab_size = 1000) {
    TokenFileWriter writer(path_, info(vocab_size));
    std::vector<int32_t> all;
    for (const size_t length : lengths) {
      const auto tokens = random_tokens(length, static_cast<int32_t>(vocab_size),
                                        static_cast<uint32_t>(length + 1));
      writer.append_document(tokens);
      all.insert(all.end(), tokens.begin(), tokens.end());
      all.push_back(0);
    }
    writer.finish();
    return all;
  }

  static TokenFileInfo info(int64_t vocab_size) {
    return {.vocab_size = vocab_size,
            .end_of_document = 0,
            .tokenizer = "byte",
            .tokenizer_hash = "0123456789abcdef",
            .source = "some text",
            .source_hash = "fedcba9876543210"};
  }

  // Changes the byte in place: ext4 would flush a file that is truncated and rewritten.
  void flip(size_t byte, int bit) {
    std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(byte));
    const int old = file.get();
    file.seekp(static_cast<std::streamoff>(byte));
    file.put(static_cast<char>(old ^ 1 << bit));
  }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "train.h5";
};

class TokenFileSizeTest : public TokenFileTest, public ::testing::WithParamInterface<size_t> {};
INSTANTIATE_TEST_SUITE_P(Sizes, TokenFileSizeTest,
                         ::testing::Values(0, 1, 31, 32, 33, 257, 65534, 65535, 65536, 200000));

TEST_P(TokenFileSizeTest, WhatIsWrittenIsRead) {
  const auto tokens = write({GetParam(), 3, GetParam()});

  TokenFile file(path_);

  EXPECT_EQ(read_all(file), tokens);
  const auto length = static_cast<int64_t>(GetParam());
  EXPECT_THAT(file.document_offsets(),
              ::testing::ElementsAre(0, length + 1, length + 5, 2 * length + 6));
  EXPECT_EQ(file.num_documents(), 3);
}

TEST_F(TokenFileTest, LargeVocabulariesTakeFourBytes) {
  const auto tokens = write({1000, 70000}, 200000);

  TokenFile file(path_);

  EXPECT_EQ(read_all(file), tokens);
  EXPECT_GT(*std::ranges::max_element(tokens), 65535);
  EXPECT_EQ(hdf5::File::open(path_).dataset("tokens").element(), hdf5::Element::u32);
}

TEST_F(TokenFileTest, SlicesAcrossChunksAreReadAndReadAgain) {
  const auto tokens = write({200000});
  TokenFile file(path_);

  for (const int64_t begin : {0, 65530, 65536, 131000, 199990, 65530}) {
    std::vector<int32_t> slice(11);
    file.read(begin, slice);
    EXPECT_TRUE(std::equal(slice.begin(), slice.end(), tokens.begin() + begin)) << begin;
  }
  std::vector<int32_t> slice(11);
  EXPECT_THROW(file.read(199991, slice), Error);
  EXPECT_THROW(file.read(-1, slice), Error);
}

TEST_F(TokenFileTest, AttributesComeBack) {
  write({5});

  const TokenFileInfo read = TokenFile(path_).info();

  EXPECT_EQ(read.vocab_size, 1000);
  EXPECT_EQ(read.tokenizer, "byte");
  EXPECT_EQ(read.tokenizer_hash, "0123456789abcdef");
  EXPECT_EQ(read.source, "some text");
  EXPECT_EQ(read.source_hash, "fedcba9876543210");
}

// The tokens count up, and every third is a target.
class MaskedTokenFileTest : public TokenFileTest {
 protected:
  MaskedTokenFileTest() {
    TokenFileInfo masked = info(60000);
    masked.loss_mask = true;
    TokenFileWriter writer(path_, masked);
    for (const int32_t length : {5, 70000, 0, 3}) {
      std::vector<int32_t> tokens;
      std::vector<uint8_t> mask;
      for (int32_t i = 0; i <= length; ++i) {
        if (i < length) tokens.push_back(i % 50000 + 1);
        mask.push_back(mask_.size() % 3 == 0 ? 1 : 0);
        mask_.push_back(mask.back());
      }
      writer.append_document(tokens, mask);
    }
    writer.finish();
  }

  std::vector<uint8_t> mask_;
};

TEST_F(MaskedTokenFileTest, TheMaskComesBackAcrossChunks) {
  TokenFile file(path_);
  ASSERT_TRUE(file.info().loss_mask);

  for (const int64_t begin : {0, 65530, 65536, 69990, 65530}) {
    std::vector<uint8_t> slice(11);
    file.read_loss_mask(begin, slice);
    EXPECT_TRUE(std::equal(slice.begin(), slice.end(), mask_.begin() + begin)) << begin;
  }
  std::vector<uint8_t> all(mask_.size());
  file.read_loss_mask(0, all);
  EXPECT_EQ(all, mask_);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()), {}), 1);
}

// Programs without support for masks refuse the file because of its version.
TEST_F(MaskedTokenFileTest, HasAVersionOfItsOwnAndTheFingerprintOfItsTokens) {
  EXPECT_EQ(hdf5::File::open(path_).get_int("version"), 2);
  const TokenFile masked(path_);
  TokenFileWriter plain(folder_.path() / "plain.h5", info(60000));
  for (const int32_t length : {5, 70000, 0, 3}) {
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < length; ++i) tokens.push_back(i % 50000 + 1);
    plain.append_document(tokens);
  }
  plain.finish();

  const TokenFile file(folder_.path() / "plain.h5");

  EXPECT_EQ(hdf5::File::open(file.path()).get_int("version"), 1);
  EXPECT_EQ(file.fingerprint(), masked.fingerprint());
  EXPECT_FALSE(file.info().loss_mask);
}

TEST_F(MaskedTokenFileTest, ADamagedMaskNamesItsChunk) {
  flip(static_cast<size_t>(hdf5::File::open(path_).dataset("loss_mask").file_offset()) + 65540, 0);
  TokenFile file(path_);
  std::vector<uint8_t> slice(10);

  file.read_loss_mask(0, slice);
  EXPECT_THAT(error_of([&] { file.read_loss_mask(69000, slice); }),
              AllOf(HasSubstr("train.h5 is damaged"), HasSubstr("chunk 1 (the loss mask"),
                    HasSubstr("switchyard tokenize")));
  EXPECT_THAT(error_of([&] { file.verify(); }), HasSubstr("chunk 1 (the loss mask"));
}

TEST_F(TokenFileTest, TheWriterRefusesMasksThatDoNotFit) {
  TokenFileInfo masked = info(1000);
  masked.loss_mask = true;
  TokenFileWriter writer(path_, masked), plain(folder_.path() / "plain.h5", info(1000));
  const std::vector<int32_t> tokens = {1, 2};

  EXPECT_THROW(writer.append_document(tokens), Error);
  EXPECT_THROW(writer.append_document(tokens, std::vector<uint8_t>{1, 1}), Error);
  EXPECT_THROW(writer.append_document(tokens, std::vector<uint8_t>{1, 2, 0}), Error);
  EXPECT_THROW(plain.append_document(tokens, std::vector<uint8_t>{1, 1, 0}), Error);
}

TEST_F(TokenFileTest, AFileWithoutMaskHasNoneToRead) {
  write({5});
  TokenFile file(path_);
  std::vector<uint8_t> slice(2);

  EXPECT_THAT(error_of([&] { file.read_loss_mask(0, slice); }), HasSubstr("has no loss mask"));
}

TEST_F(TokenFileTest, TheSameDocumentsGiveTheSameBytes) {
  write({1000, 3});
  const std::string first = test::read_file(path_);
  std::filesystem::remove(path_);

  write({1000, 3});

  EXPECT_EQ(test::read_file(path_), first);
}

TEST_F(TokenFileTest, FingerprintsTellContentsApart) {
  write({100, 3});
  const uint64_t first = TokenFile(path_).fingerprint();
  EXPECT_EQ(TokenFile(path_).fingerprint(), first);

  write({3, 100});

  EXPECT_NE(TokenFile(path_).fingerprint(), first);
}

TEST_F(TokenFileTest, NothingStaysWithoutFinish) {
  {
    TokenFileWriter writer(path_, info(1000));
    writer.append_document(std::vector<int32_t>{1, 2, 3});
  }

  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(TokenFileTest, OnlyTheFileStaysAfterFinish) {
  write({100});

  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()), {}), 1);
}

TEST_F(TokenFileTest, TheWriterRefusesTokensOutsideTheVocabularyAndEmptyFiles) {
  TokenFileWriter writer(path_, info(1000));

  EXPECT_THROW(writer.append_document(std::vector<int32_t>{1000}), Error);
  EXPECT_THROW(writer.append_document(std::vector<int32_t>{-1}), Error);
  EXPECT_THROW(TokenFileWriter(path_, info(1000)).finish(), Error);
}

TEST_F(TokenFileTest, AFileThatCannotBeReadIsNotToBeMadeAgain) {
  const auto path = folder_.path() / "unreadable.h5";
  std::filesystem::create_symlink("/proc/self/mem", path);  // reading its first byte fails

  EXPECT_THAT(error_of([&] { TokenFile file(path); }),
              AllOf(HasSubstr("cannot read"), ::testing::Not(HasSubstr("make it again"))));
  EXPECT_THAT(error_of([&] { TokenFile file(folder_.path()); }), HasSubstr("is a folder"));
}

TEST_F(TokenFileTest, AMissingFileIsNamedWithTheRemedy) {
  EXPECT_THAT(error_of([&] { TokenFile file(path_); }),
              AllOf(HasSubstr("train.h5 does not exist"), HasSubstr("switchyard tokenize")));
}

TEST_F(TokenFileTest, ATruncatedFileIsAClearErrorWhereverItEnds) {
  write({2000, 300});
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path_));

  for (int64_t kept = size - 1; kept >= 0; kept -= kept > 700 ? 37 : 1) {
    std::filesystem::resize_file(path_, static_cast<uintmax_t>(kept));
    EXPECT_THAT(error_of([&] { TokenFile file(path_); }),
                AllOf(HasSubstr("train.h5"), HasSubstr("switchyard tokenize")))
        << kept;
  }
}

TEST_F(TokenFileTest, AFileCutOffWhileInUseIsAClearError) {
  write({200000});
  TokenFile file(path_);
  std::filesystem::resize_file(path_, 100000);

  EXPECT_THAT(error_of([&] { read_all(file); }), HasSubstr("cut off"));
}

// Flips a bit of every byte of the file: HDF5's structures, tokens, offsets, checksums.
TEST_F(TokenFileTest, AFlippedBitIsAClearErrorOrWithoutEffect) {
  const auto tokens = write({150, 20, 33});
  const auto size = std::filesystem::file_size(path_);
  const std::vector<int64_t> offsets = {0, 151, 172, 206};
  int errors = 0;

  for (size_t byte = 0; byte < size; ++byte) {
    flip(byte, static_cast<int>(byte % 8));
    std::vector<int32_t> read;
    const std::string error = error_of([&] {
      TokenFile file(path_);
      read = read_all(file);
      EXPECT_TRUE(std::ranges::equal(file.document_offsets(), offsets)) << byte;
      EXPECT_EQ(file.info().vocab_size, 1000) << byte;
      EXPECT_EQ(file.info().tokenizer_hash, info(1000).tokenizer_hash) << byte;
    });
    if (error.empty()) {
      EXPECT_EQ(read, tokens) << byte;
    } else {
      EXPECT_THAT(error, AllOf(HasSubstr("train.h5"), HasSubstr("switchyard tokenize"))) << byte;
      ++errors;
    }
    flip(byte, static_cast<int>(byte % 8));
  }

  // Only HDF5's unused bytes have no effect; those of tokens, offsets and checksums must have one.
  EXPECT_GE(errors, 2 * 206 + 8 * 4 + 4);
}

TEST_F(TokenFileTest, ADamagedTokenNamesItsChunkAndSparesTheOthers) {
  const auto tokens = write({200000});
  const auto offset = hdf5::File::open(path_).dataset("tokens").file_offset();
  flip(static_cast<size_t>(offset) + 2 * 70000, 3);

  TokenFile file(path_);
  std::vector<int32_t> slice(100);

  file.read(65000, slice);
  EXPECT_TRUE(std::equal(slice.begin(), slice.end(), tokens.begin() + 65000));
  const auto matcher = AllOf(HasSubstr("train.h5 is damaged"), HasSubstr("chunk 1"),
                             HasSubstr("tokens 65536 to 131071"), HasSubstr("switchyard tokenize"));
  EXPECT_THAT(error_of([&] { file.read(65500, slice); }), matcher);
  EXPECT_THAT(error_of([&] { file.read(130000, slice); }), matcher);
  EXPECT_THAT(error_of([&] { file.verify(); }), matcher);
  file.read(131072, slice);
  EXPECT_TRUE(std::equal(slice.begin(), slice.end(), tokens.begin() + 131072));
}

// A file that another program wrote, with correct checksums and wrong contents.
class ForeignTokenFileTest : public TokenFileTest {
 protected:
  void write_foreign(int64_t version, int64_t vocab_size, const std::vector<uint16_t>& tokens,
                     const std::vector<int64_t>& offsets, int64_t end_of_document = 0,
                     int64_t chunk_tokens = 4) {
    auto file = hdf5::File::create(path_);
    file.set_string("format", "switchyard.tokens");
    file.set_int("version", version);
    file.set_int("vocab_size", vocab_size);
    file.set_int("end_of_document", end_of_document);
    file.set_int("chunk_tokens", chunk_tokens);
    for (const char* name : {"tokenizer", "tokenizer_hash", "source", "source_hash"}) {
      file.set_string(name, "x");
    }
    const auto count = static_cast<int64_t>(tokens.size());
    file.create_dataset("tokens", hdf5::Element::u16, {count}).write<uint16_t>(tokens);
    auto dataset = file.create_dataset("document_offsets", hdf5::Element::i64,
                                       {static_cast<int64_t>(offsets.size())});
    dataset.write<int64_t>(offsets);
    dataset.set_int("crc32c", crc32c(std::as_bytes(std::span(offsets))));
    std::vector<uint32_t> checksums;
    for (size_t i = 0; i < tokens.size(); i += 4) {
      const auto chunk = std::span(tokens).subspan(i, std::min<size_t>(4, tokens.size() - i));
      checksums.push_back(crc32c(std::as_bytes(chunk)));
    }
    file.create_dataset("chunk_checksums", hdf5::Element::u32,
                        {static_cast<int64_t>(checksums.size())})
        .write<uint32_t>(checksums);
    file.close();
  }
};

TEST_F(ForeignTokenFileTest, AGoodOneIsRead) {
  write_foreign(1, 10, {1, 2, 3, 4, 0}, {0, 5});

  TokenFile file(path_);

  EXPECT_EQ(read_all(file), (std::vector<int32_t>{1, 2, 3, 4, 0}));
}

TEST_F(ForeignTokenFileTest, ATokenOutsideTheVocabularyIsNamedWithItsPosition) {
  write_foreign(1, 10, {1, 2, 3, 4, 5, 10, 0}, {0, 7});

  TokenFile file(path_);

  EXPECT_THAT(error_of([&] { read_all(file); }),
              AllOf(HasSubstr("the token 10 at position 5"), HasSubstr("vocabulary of 10")));
}

TEST_F(ForeignTokenFileTest, AnEndOfDocumentTokenOutsideTheVocabularyIsRefused) {
  const auto error_of_end = [&](int64_t end_of_document) {
    write_foreign(1, 10, {1, 2, 0}, {0, 3}, end_of_document);
    return error_of([&] { TokenFile file(path_); });
  };

  EXPECT_EQ(error_of_end(9), "");
  for (const int64_t end : {int64_t{10}, int64_t{-1}, (int64_t{1} << 32) + 3}) {
    EXPECT_THAT(error_of_end(end), HasSubstr("end-of-document token")) << end;
  }
}

TEST_F(ForeignTokenFileTest, ChunksOfAnyClaimedSizeAreCounted) {
  write_foreign(1, 10, {1, 2, 3, 0}, {0, 4}, 0, std::numeric_limits<int64_t>::max());
  TokenFile whole(path_);
  EXPECT_EQ(read_all(whole), (std::vector<int32_t>{1, 2, 3, 0}));

  for (const int64_t chunk : {int64_t{0}, int64_t{-1}, int64_t{3}}) {
    write_foreign(1, 10, {1, 2, 3, 0}, {0, 4}, 0, chunk);
    EXPECT_THAT(error_of([&] { TokenFile file(path_); }), HasSubstr("1 checksums for 4 tokens"));
  }
}

TEST_F(ForeignTokenFileTest, AnotherVersionIsRefused) {
  write_foreign(3, 10, {1, 0}, {0, 2});

  EXPECT_THAT(error_of([&] { TokenFile file(path_); }),
              AllOf(HasSubstr("format version is 3"), HasSubstr("reads 1 and 2")));
}

TEST_F(ForeignTokenFileTest, TheVersionOfMaskedFilesWithoutMaskIsRefused) {
  write_foreign(2, 10, {1, 0}, {0, 2});

  EXPECT_THAT(error_of([&] { TokenFile file(path_); }),
              HasSubstr("format version is 2, and it has no loss mask"));
}

TEST_F(ForeignTokenFileTest, OffsetsThatDoNotDivideTheTokensAreRefused) {
  const std::vector<std::vector<int64_t>> wrong = {{},           {0},          {0, 4}, {1, 5},
                                                   {0, 3, 3, 5}, {0, 4, 3, 5}, {0, 6}};
  for (const auto& offsets : wrong) {
    write_foreign(1, 10, {1, 2, 3, 4, 0}, offsets);
    EXPECT_THAT(error_of([&] { TokenFile file(path_); }), HasSubstr("document offsets"));
  }
}

TEST_F(ForeignTokenFileTest, AnyOtherHdf5FileIsRefused) {
  auto file = hdf5::File::create(path_);
  file.close();

  EXPECT_THAT(error_of([&] { TokenFile tokens(path_); }), HasSubstr("not a token file"));
}

TEST_F(TokenFileTest, AnotherTokenizerIsRefused) {
  write({5});
  const TokenFile file(path_);

  EXPECT_THAT(error_of([&] { require_tokenizer(file, *make_tokenizer({})); }),
              HasSubstr("0123456789abcdef"));
}

}  // namespace
}  // namespace switchyard
