#include "trainer/data/token_array.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <sstream>
#include <string>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/token_file.h"
#include "trainer/data/tokenize.h"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Documents = std::vector<std::vector<int32_t>>;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// What Megatron's MMapIndexedDatasetBuilder writes.
struct Index {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  uint64_t version = 1;
  uint8_t type = 8;  // u16
  std::vector<int32_t> lengths;
  std::vector<int64_t> first_bytes, documents;
  std::string modes;
  uint64_t more_sequences = 0;

  std::string bytes() const {
    return magic + bytes_of(std::vector{version}) + static_cast<char>(type) +
           bytes_of(std::vector<uint64_t>{lengths.size() + more_sequences, documents.size()}) +
           bytes_of(lengths) + bytes_of(first_bytes) + bytes_of(documents) + modes;
  }
};

class TokenArrayTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return (folder_.path() / name).string(); }
  void put(const std::string& name, const std::string& bytes) {
    test::write_file(path(name), bytes);
  }

  Documents documents_of(ArrayDType dtype, int64_t vocab_size = 257, int32_t end = 256) const {
    TokenArray array(path("a.bin"), dtype, vocab_size, end);
    Documents documents;
    while (const auto ranges = array.next_document()) {
      std::vector<int32_t>& document = documents.emplace_back();
      for (const auto& [from, to] : *ranges) {
        std::vector<int32_t> ids(static_cast<size_t>(to - from));
        array.read(from, ids);
        document.insert(document.end(), ids.begin(), ids.end());
      }
    }
    return documents;
  }
  std::string error(ArrayDType dtype = ArrayDType::none) const {
    return error_of([&] { documents_of(dtype); });
  }

  // Two documents of two sequences and one; the second ends with the end-of-document token.
  static Index small_index() {
    return {.lengths = {2, 1, 3}, .first_bytes = {0, 4, 6}, .documents = {0, 2, 3}, .modes = ""};
  }
  static std::string small_ids() { return bytes_of(std::vector<uint16_t>{1, 2, 3, 4, 5, 256}); }

  DataSection config() const {
    DataSection data;
    data.train = {{path("train.h5")}};
    data.text = {path("a.bin")};
    return data;
  }

  test::TemporaryFolder folder_;
  std::ostringstream log_;
};

TEST_F(TokenArrayTest, AFlatArrayIsDividedAtItsEndOfDocumentTokens) {
  const Documents expected = {{1, 2}, {}, {3, 0}, {4}};
  put("a.bin", bytes_of(std::vector<uint16_t>{1, 2, 256, 256, 3, 0, 256, 4}));
  EXPECT_EQ(documents_of(ArrayDType::u16), expected);
  put("a.bin", bytes_of(std::vector<uint32_t>{1, 2, 256, 256, 3, 0, 256, 4}));
  EXPECT_EQ(documents_of(ArrayDType::u32), expected);
  put("a.bin", bytes_of(std::vector<uint16_t>{1, 256}));
  EXPECT_EQ(documents_of(ArrayDType::u16), (Documents{{1}}));
  put("a.bin", "");
  EXPECT_EQ(documents_of(ArrayDType::u16), Documents{});
}

TEST_F(TokenArrayTest, DocumentsMayEndAnywhereInABlock) {
  std::vector<uint16_t> ids;
  Documents expected;
  for (const int length : {65535, 0, 1, 65536, 65534, 65537, 200000, 3}) {
    std::vector<int32_t>& document = expected.emplace_back(length);
    for (int i = 0; i < length; ++i) document[static_cast<size_t>(i)] = (i * 7 + length) % 256;
    ids.insert(ids.end(), document.begin(), document.end());
    ids.push_back(256);
  }
  put("a.bin", bytes_of(ids));

  EXPECT_EQ(documents_of(ArrayDType::u16), expected);
}

TEST_F(TokenArrayTest, MegatronsIndexSaysWhatADocumentIs) {
  put("a.bin", small_ids());
  Index index = small_index();
  put("a.idx", index.bytes());
  EXPECT_EQ(documents_of(ArrayDType::none), (Documents{{1, 2, 3}, {4, 5}}));

  index.modes = std::string(3, '\1');  // of data of several kinds
  put("a.idx", index.bytes());
  EXPECT_EQ(documents_of(ArrayDType::none), (Documents{{1, 2, 3}, {4, 5}}));

  // Sequences in another order than in the file, and a document without any.
  index = {.lengths = {3, 2}, .first_bytes = {6, 0}, .documents = {0, 0, 2}, .modes = ""};
  put("a.idx", index.bytes());
  EXPECT_EQ(documents_of(ArrayDType::none), (Documents{{}, {4, 5, 256, 1, 2}}));
}

TEST_F(TokenArrayTest, EveryTypeOfIdIsRead) {
  const auto read = [&](uint8_t type, const std::string& ids, int64_t each) {
    Index index = small_index();
    index.type = type;
    for (int64_t& first : index.first_bytes) first = first / 2 * each;
    put("a.bin", ids);
    put("a.idx", index.bytes());
    return documents_of(ArrayDType::none);
  };
  const Documents expected = {{1, 2, 3}, {4, 5, 6}};

  EXPECT_EQ(read(1, bytes_of(std::vector<uint8_t>{1, 2, 3, 4, 5, 6}), 1), expected);
  EXPECT_EQ(read(2, bytes_of(std::vector<int8_t>{1, 2, 3, 4, 5, 6}), 1), expected);
  EXPECT_EQ(read(3, bytes_of(std::vector<int16_t>{1, 2, 3, 4, 5, 6}), 2), expected);
  EXPECT_EQ(read(4, bytes_of(std::vector<int32_t>{1, 2, 3, 4, 5, 6}), 4), expected);
  EXPECT_EQ(read(5, bytes_of(std::vector<int64_t>{1, 2, 3, 4, 5, 6}), 8), expected);
  EXPECT_EQ(read(8, bytes_of(std::vector<uint16_t>{1, 2, 3, 4, 5, 6}), 2), expected);
}

TEST_F(TokenArrayTest, IdsOutsideTheVocabularyAreNamedByFileAndPosition) {
  put("a.bin", bytes_of(std::vector<uint16_t>{1, 2, 3, 257}));
  EXPECT_THAT(error(ArrayDType::u16),
              HasSubstr("a.bin: the id 257 at position 3 is outside the vocabulary of 257"));
  put("a.bin", bytes_of(std::vector<int32_t>{1, -2, 3, 4, 5, 6}));
  Index index = small_index();
  index.type = 4;
  index.first_bytes = {0, 8, 12};
  put("a.idx", index.bytes());
  EXPECT_THAT(error(), HasSubstr("a.bin: the id -2 at position 1 is outside"));
}

TEST_F(TokenArrayTest, AnIndexIsBelievedInNothing) {
  put("a.bin", small_ids());
  const auto error_with = [&](const std::function<void(Index&)>& change) {
    Index index = small_index();
    change(index);
    put("a.idx", index.bytes());
    return error();
  };

  EXPECT_EQ(error_with([](Index&) {}), "");
  EXPECT_THAT(error_with([](Index& i) { i.lengths[2] = 4; }),
              AllOf(HasSubstr("a.idx of "), HasSubstr("a.bin cannot be used: sequence 2 has 4 ids "
                                                      "of 2 bytes from byte 6 on, and the file has "
                                                      "12 bytes")));
  for (const int64_t wrong : {int64_t{-2}, int64_t{14}, INT64_MAX, INT64_MIN}) {
    EXPECT_THAT(error_with([&](Index& i) { i.first_bytes[1] = wrong; }), HasSubstr("sequence 1"));
  }
  EXPECT_THAT(error_with([](Index& i) { i.first_bytes[1] = 5; }), HasSubstr("within an id"));
  EXPECT_THAT(error_with([](Index& i) { i.lengths[0] = -1; }), HasSubstr("sequence 0 has -1 ids"));
  for (const auto& documents :
       std::vector<std::vector<int64_t>>{{}, {0}, {0, 2}, {1, 3}, {0, 4}, {0, 3, 2, 3}, {-1, 3}}) {
    EXPECT_THAT(error_with([&](Index& i) { i.documents = documents; }),
                HasSubstr("its documents do not divide its 3 sequences"));
  }
  EXPECT_THAT(error_with([](Index& i) { i.magic[0] = 'N'; }), HasSubstr("begin with MMIDIDX"));
  EXPECT_THAT(error_with([](Index& i) { i.version = 2; }), HasSubstr("its version is 2"));
  EXPECT_THAT(error_with([](Index& i) { i.type = 7; }), HasSubstr("floating-point"));
  EXPECT_THAT(error_with([](Index& i) { i.type = 9; }), HasSubstr("type 9 is unknown"));
  EXPECT_THAT(error_with([](Index& i) { i.more_sequences = 1; }), HasSubstr("4 sequences and 3"));
  EXPECT_THAT(error_with([](Index& i) { i.more_sequences = UINT64_MAX / 12; }),
              HasSubstr("it has no room for its"));
  EXPECT_THAT(error_with([](Index& i) { i.modes = "12"; }), HasSubstr("behind its header"));
  for (size_t kept = 0; kept < small_index().bytes().size(); ++kept) {
    put("a.idx", small_index().bytes().substr(0, kept));
    EXPECT_THAT(error(), HasSubstr("a.idx")) << kept;
  }
}

TEST_F(TokenArrayTest, EitherTheIndexOrTheConfigurationSaysTheType) {
  put("a.bin", "abc");
  EXPECT_THAT(error(ArrayDType::none), HasSubstr("set data.array_dtype to u16 or u32, or put"));
  EXPECT_THAT(error(ArrayDType::u16), HasSubstr("3 bytes, which are no whole number of u16"));
  put("a.idx", small_index().bytes());
  EXPECT_THAT(error(ArrayDType::u16), HasSubstr("take data.array_dtype out"));
}

TEST_F(TokenArrayTest, TokenizeMakesTokenFilesOfTheDocuments) {
  std::vector<uint16_t> ids;
  for (int document = 0; document < 300; ++document) {
    for (int i = 0; i < 40; ++i) ids.push_back(static_cast<uint16_t>((document * 5 + i * 3) % 256));
    ids.push_back(256);
  }
  put("a.bin", bytes_of(ids));
  DataSection data = config();
  data.array_dtype = ArrayDType::u16;
  data.validation = {{path("validation.h5")}};
  data.validation_share = 0.1;

  const auto report = tokenize(data, log_);

  TokenFile train(data.train[0].path), validation(data.validation[0].path);
  EXPECT_EQ(report.documents, 300);
  EXPECT_EQ(train.num_documents() + validation.num_documents(), 300);
  EXPECT_EQ(train.num_tokens() + validation.num_tokens(), std::ssize(ids));
  EXPECT_NEAR(static_cast<double>(validation.num_documents()), 30.0, 26.0);
  std::vector<int32_t> first(41);
  train.read(0, first);
  EXPECT_EQ(first[40], 256);
  EXPECT_EQ(first[39], (first[0] + 39 * 3) % 256);
  log_.str("");
  tokenize(data, log_);
  EXPECT_THAT(log_.str(), HasSubstr("up to date"));
}

TEST_F(TokenArrayTest, TheEndOfEachOfFewDocumentsIsHeldOut) {
  std::vector<uint16_t> ids(1000);
  std::iota(ids.begin(), ids.end(), uint16_t{0});
  for (uint16_t& id : ids) id %= 256;
  put("a.bin", bytes_of(ids));
  DataSection data = config();
  data.array_dtype = ArrayDType::u16;
  data.validation = {{path("validation.h5")}};
  data.validation_share = 0.1;

  tokenize(data, log_);

  TokenFile validation(data.validation[0].path);
  std::vector<int32_t> held_out(101);
  EXPECT_EQ(TokenFile(data.train[0].path).num_tokens(), 901);
  EXPECT_EQ(validation.num_tokens(), 101);
  validation.read(0, held_out);
  EXPECT_EQ(held_out.front(), 900 % 256);
  EXPECT_EQ(held_out.back(), 256);
}

TEST_F(TokenArrayTest, ASplitWithoutDocumentsIsAnErrorThatReplacesNeitherFile) {
  put("a.bin", bytes_of(std::vector<uint16_t>{1, 2, 256, 3, 4, 256}));
  DataSection data = config();
  data.array_dtype = ArrayDType::u16;
  data.validation = {{path("validation.h5")}};
  data.validation_share = 0.02;  // less than one id of each document

  EXPECT_THAT(error_of([&] { tokenize(data, log_); }),
              HasSubstr("none of them is held out for data.validation; give more documents, raise "
                        "data.validation_share, or take data.validation out"));
  EXPECT_FALSE(std::filesystem::exists(data.train[0].path));
  EXPECT_FALSE(std::filesystem::exists(data.validation[0].path));
}

TEST_F(TokenArrayTest, NothingIsWrittenFromWrongInputs) {
  put("a.bin", bytes_of(std::vector<uint16_t>{1, 2, 256, 3, 4, 500}));
  put("a.txt", "text");
  DataSection data = config();
  const auto error_with = [&](const std::function<void(DataSection&)>& change) {
    DataSection changed = data;
    changed.array_dtype = ArrayDType::u16;
    change(changed);
    return error_of([&] { tokenize(changed, log_); });
  };

  EXPECT_THAT(error_with([](auto&) {}), HasSubstr("the id 500 at position 5"));
  EXPECT_THAT(error_with([&](auto& d) { d.text.push_back(path("a.txt")); }),
              HasSubstr("both token arrays (.bin) and text"));
  EXPECT_THAT(error_with([&](auto& d) { d.text = {path("a.idx")}; }),
              HasSubstr("a.idx is the index of token ids; name the .bin beside it"));
  EXPECT_THAT(error_with([&](auto& d) { d.text = {path("b.bin")}; }), HasSubstr("does not exist"));
  EXPECT_THAT(error_with([](auto& d) { d.record = RecordForm::segments; }),
              HasSubstr("data.record=segments reads .jsonl files"));
  EXPECT_THAT(error_with([](auto& d) { d.train = {{d.text[0]}}; }),
              HasSubstr("is not a token file"));
  put("a.bin", "");
  EXPECT_THAT(error_with([](auto&) {}), HasSubstr("all files of data.text are empty"));
  EXPECT_FALSE(std::filesystem::exists(data.train[0].path));
  EXPECT_FALSE(std::filesystem::exists(data.train[0].path + ".tmp"));
}

}  // namespace
}  // namespace switchyard
