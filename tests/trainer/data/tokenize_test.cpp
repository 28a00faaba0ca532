#include "trainer/data/tokenize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <csignal>
#include <functional>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/corpus.h"
#include "trainer/data/token_file.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CorpusTest : public ::testing::Test {
 protected:
  std::filesystem::path put(const std::string& name, const std::string& text) {
    test::write_file(folder_.path() / name, text);
    return folder_.path() / name;
  }

  std::filesystem::path put_compressed(const std::string& name, const std::string& text) {
    const auto path = folder_.path() / name;
    std::filesystem::create_directories(path.parent_path());
    const gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
    return path;
  }

  static std::vector<std::string> documents_of(const std::vector<std::string>& inputs,
                                               InvalidUtf8 invalid = InvalidUtf8::refuse,
                                               TextNotes* notes = nullptr) {
    const Corpus corpus(inputs);
    DocumentReader reader(corpus, invalid);
    std::vector<std::string> documents;
    while (auto document = reader.next()) documents.push_back(document->text);
    if (notes) *notes = reader.notes();
    return documents;
  }

  std::filesystem::path link(const std::string& target, const std::string& name) {
    std::filesystem::create_directories((folder_.path() / name).parent_path());
    std::filesystem::create_symlink(target, folder_.path() / name);
    return folder_.path() / name;
  }

  test::TemporaryFolder folder_;
};

TEST_F(CorpusTest, FoldersAreSearchedForTextInTheOrderOfPaths) {
  put("text/b.rst", "two");
  put("text/a/z.txt", "one");
  put_compressed("text/c.rst.gz", "three");
  put("text/d.md", "four");
  put("text/code.cpp", "int main() {}");
  put("text/image.gz", "not text");

  EXPECT_THAT(documents_of({folder_.path() / "text"}), ElementsAre("one", "two", "three", "four"));
}

TEST_F(CorpusTest, LinkedFoldersAreSearchedOnceAndCyclesEnd) {
  put("text/a/1.txt", "one");
  put("text/a/2.txt", "two");
  put("text/z.txt", "four");
  put("elsewhere/deep/3.txt", "three");
  link("../../text", "elsewhere/deep/back");
  link("..", "text/a/up");  // a cycle
  link("a", "text/0");      // a folder that is searched under its own name
  link("../elsewhere", "text/linked");
  link("../elsewhere/deep", "text/m");  // a part of one that is linked before it

  const std::vector<std::string> input = {folder_.path() / "text"};
  EXPECT_THAT(documents_of(input), ElementsAre("one", "two", "three", "four"));
  EXPECT_EQ(Corpus(input).files()[2], folder_.path() / "text/linked/deep/3.txt");
  EXPECT_THAT(Corpus(input).notes().lines(), ElementsAre());
}

TEST_F(CorpusTest, WhatIsLeftOutOfAFolderIsCountedAndNamed) {
  put("text/a.txt", "text");
  put("text/picture.png", "x");
  put("text/sub/.hidden", "x");
  put("text/.notes.md", "hidden text");
  link("nothing", "text/b.txt");
  link("circle", "text/circle");
  link("a.txt", "text/z.txt");
  ASSERT_EQ(::mkfifo((folder_.path() / "text/pipe.txt").c_str(), 0600), 0);
  for (int i = 0; i < 8; ++i) put(fmt::format("text/{}.c", i), "int x;");
  const std::string in = (folder_.path() / "text").string() + "/";

  const std::vector<std::string> input = {folder_.path() / "text"};
  EXPECT_THAT(documents_of(input), ElementsAre("hidden text", "text", "text"));
  EXPECT_THAT(
      Corpus(input).notes().lines(),
      ElementsAre(
          "left out: 10 files whose names do not end in .txt, .rst, .md or .jsonl, or one of "
          "them and .gz or .zst: " +
              in + "0.c, " + in + "1.c, " + in + "2.c, " + in + "3.c, " + in + "4.c and 5 more",
          "left out: 2 links to nothing: " + in + "b.txt, " + in + "circle",
          "left out: 1 special file (devices, pipes, sockets): " + in + "pipe.txt",
          "read again: 1 file under another name: " + in + "z.txt"));
  EXPECT_THAT(error_of([&] { documents_of({folder_.path() / "text/pipe.txt"}); }),
              HasSubstr("pipe.txt is a device or a pipe, but text is read more than once"));
}

TEST_F(CorpusTest, EmptyDocumentsAndOtherKeysAreCountedAndNamed) {
  const auto file = put("a.jsonl",
                        "{\"text\": \"one\", \"id\": 1, \"meta\": {\"text\": \"x\"}}\n"
                        "{\"text\": \"\"}\n\n{\"id\": 2, \"text\": \"two\"}\n");
  TextNotes notes;

  EXPECT_THAT(documents_of({put("empty.txt", ""), file}, InvalidUtf8::refuse, &notes),
              ElementsAre("one", "two"));
  EXPECT_THAT(notes.lines(),
              ElementsAre("left out: 2 empty documents: " +
                              (folder_.path() / "empty.txt").string() + ", " + file.string() + ":2",
                          "left out: \"id\" of 2 records, which is not their text",
                          "left out: \"meta\" of 1 record, which is not their text"));
}

TEST_F(CorpusTest, TwoTextsInOneRecordAreAnError) {
  EXPECT_THAT(error_of([&] {
                documents_of({put("a.jsonl", R"({"text": "one", "id": 1, "text": "two"})")});
              }),
              HasSubstr("a.jsonl:1: the object has two strings \"text\""));
  EXPECT_THAT(documents_of({put("a.jsonl", R"({"text": "a \"text\": b", "x": {"text": 1}})")}),
              ElementsAre("a \"text\": b"));
}

TEST_F(CorpusTest, BytesThatAreNotUtf8AreRefusedReplacedOrKept) {
  const auto latin = put("latin.txt", "caf\xE9\n"), right = put("right.txt", "größer \uFEFF");
  const auto lines = put("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xE9t\xE9\"}\n");
  const auto utf16 = put("utf16.txt", std::string("\xFF\xFEh\0", 4));
  const auto compressed = put_compressed("b.txt.gz", "\xC3");
  const auto read = [&](const std::filesystem::path& path, InvalidUtf8 invalid, TextNotes* notes) {
    return documents_of({path}, invalid, notes);
  };
  const auto refusal = [&](const std::filesystem::path& path, InvalidUtf8 invalid) {
    return error_of([&] { read(path, invalid, nullptr); });
  };

  const auto refuse = InvalidUtf8::refuse;
  EXPECT_THAT(read(right, refuse, nullptr), ElementsAre("größer \uFEFF"));
  EXPECT_THAT(
      refusal(latin, refuse),
      HasSubstr("latin.txt: byte 3 (0xe9) is not UTF-8, perhaps Latin-1; convert the file to "
                "UTF-8, or set data.encoding_errors=replace to read U+FFFD there"));
  EXPECT_THAT(refusal(lines, refuse), HasSubstr("a.jsonl:2: byte 10 (0xe9) is not UTF-8"));
  EXPECT_THAT(refusal(utf16, refuse), HasSubstr("byte 0 (0xff) is not UTF-8, perhaps UTF-16"));
  EXPECT_THAT(refusal(compressed, refuse), HasSubstr("b.txt.gz: byte 0 (0xc3)"));

  TextNotes notes;
  EXPECT_THAT(documents_of({latin, right, lines}, InvalidUtf8::replace, &notes),
              ElementsAre("caf\uFFFD\n", "größer \uFEFF", "a", "\uFFFDt\uFFFD"));
  EXPECT_THAT(notes.lines(),
              ElementsAre("changed: U+FFFD replaces 3 sequences of bytes that are not UTF-8, in 2 "
                          "documents: " +
                          latin.string() + ", " + lines.string() + ":2"));

  EXPECT_THAT(read(latin, InvalidUtf8::keep, &notes), ElementsAre("caf\xE9\n"));
  EXPECT_THAT(notes.lines(), ElementsAre("as they are: bytes that are not UTF-8, in 1 document: " +
                                         latin.string()));
  EXPECT_THAT(refusal(lines, InvalidUtf8::keep), HasSubstr("a.jsonl:2: byte 10"));
}

TEST_F(CorpusTest, AFileThatIsNamedIsReadWhateverItIsCalled) {
  const auto book = put("book", "call me"), other = put("other.text", "ishmael");

  EXPECT_THAT(documents_of({other, book}), ElementsAre("ishmael", "call me"));
}

TEST_F(CorpusTest, EachLineOfAJsonlFileIsADocument) {
  const std::string lines =
      "{\"text\": \"one\\nline\", \"id\": 1}\n\n{\"text\": \"\"}\r\n{\"text\": \"zwölf\"}";
  const auto plain = put("a.jsonl", lines), compressed = put_compressed("b.jsonl.gz", lines);

  EXPECT_THAT(documents_of({plain, compressed}),
              ElementsAre("one\nline", "zwölf", "one\nline", "zwölf"));
}

TEST_F(CorpusTest, LongLinesAndManyLinesAreRead) {
  std::string lines;
  for (int i = 0; i < 100; ++i) {
    lines += "{\"text\": \"" + std::string(static_cast<size_t>(i * i * 60), 'x') + "y\"}\n";
  }
  const auto documents = documents_of({put("a.jsonl", lines)});

  ASSERT_EQ(documents.size(), 100u);
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(documents[i].size(), i * i * 60 + 1);
}

TEST_F(CorpusTest, LinesThatAreNoJsonAreExplained) {
  const auto error_in = [&](const std::string& line) {
    const auto file = put("a.jsonl", "{\"text\": \"a\"}\n" + line + "\n");
    return error_of([&] { documents_of({file}); });
  };

  EXPECT_THAT(error_in(R"({"text": "a", "x": NaN})"),
              HasSubstr("a.jsonl:2:20: JSON has no NaN; write null instead"));
  EXPECT_THAT(error_in(R"({"text": "a", "x": -Infinity})"), HasSubstr("JSON has no -Infinity"));
  EXPECT_THAT(error_in(R"({"text": "\ud800 x"})"), HasSubstr("half of a surrogate pair"));
  EXPECT_THAT(error_in("{\"text\": \"caf\xe9\"}"), HasSubstr("not UTF-8, perhaps Latin-1"));
  EXPECT_THAT(error_in("[1]"), HasSubstr("a.jsonl:2: is not a JSON object, but an array"));
  EXPECT_THAT(error_in("17"), HasSubstr("a.jsonl:2: is not a JSON object, but a number"));
  EXPECT_THAT(error_in(R"({"text": "a", "x": 1e999})"),
              HasSubstr("a.jsonl:2: a number is too large to be read; write null instead"));
}

TEST_F(CorpusTest, BadInputsAreNamed) {
  put("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": 7}\n");
  put("worse.jsonl", "{\"text\": \"a\"\n");
  put("fake.txt.gz", "plain text");
  std::filesystem::create_directories(folder_.path() / "empty");
  const auto in = [&](const char* name) -> std::vector<std::string> {
    return {folder_.path() / name};
  };

  EXPECT_THAT(error_of([&] { documents_of({}); }), HasSubstr("names no text"));
  EXPECT_THAT(error_of([&] { documents_of(in("none")); }), HasSubstr("none does not exist"));
  EXPECT_THAT(error_of([&] { documents_of(in("empty")); }), HasSubstr("empty"));
  EXPECT_THAT(error_of([&] { documents_of(in("bad.jsonl")); }), HasSubstr("bad.jsonl:2: the obj"));
  EXPECT_THAT(error_of([&] { documents_of(in("worse.jsonl")); }),
              HasSubstr("worse.jsonl:1:13: is no JSON: unexpected end of input"));
  EXPECT_THAT(error_of([&] { documents_of(in("fake.txt.gz")); }), HasSubstr("not compressed"));
}

TEST_F(CorpusTest, DamagedCompressedFilesAreErrors) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += std::to_string(i * 7919);
  const auto path = put_compressed("a.txt.gz", text);
  const std::string bytes = test::read_file(path);
  ASSERT_EQ(documents_of({path}), std::vector<std::string>{text});

  for (const size_t kept : {size_t{1}, size_t{5}, bytes.size() / 2, bytes.size() - 1}) {
    test::write_file(path, bytes.substr(0, kept));
    EXPECT_THAT(error_of([&] { documents_of({path}); }), HasSubstr("a.txt.gz")) << kept;
  }
  for (size_t byte = 30; byte < bytes.size(); byte += bytes.size() / 50) {
    std::string flipped = bytes;
    flipped[byte] = static_cast<char>(flipped[byte] ^ 4);
    test::write_file(path, flipped);
    EXPECT_THAT(error_of([&] { documents_of({path}); }), HasSubstr("a.txt.gz")) << byte;
  }
}

class TokenizeTest : public CorpusTest {
 protected:
  // Writes documents of a few sentences; all documents differ.
  void put_documents(int count) {
    for (int i = 0; i < count; ++i) {
      std::string text;
      for (int line = 0; line < 5; ++line) {
        text += fmt::format("Document {} has the line {} in it, and it is number {}.\n", i, line,
                            i * 31 + line * 7);
      }
      put(fmt::format("text/{:04}.txt", i), text);
    }
  }

  DataSection config(TokenizerType type = TokenizerType::byte) const {
    DataSection data;
    data.train = {{folder_.path() / "out/train.h5"}};
    data.validation = {{folder_.path() / "out/validation.h5"}};
    data.text = {folder_.path() / "text"};
    data.validation_share = 0.1;
    data.tokenizer.type = type;
    if (type == TokenizerType::sentencepiece) {
      data.tokenizer.model = folder_.path() / "out/sp.model";
      data.tokenizer.vocab_size = 330;
    }
    return data;
  }

  static std::vector<std::string> texts_of(const std::string& path,
                                           const TokenizerSection& tokenizer_config) {
    const auto tokenizer = make_tokenizer(tokenizer_config);
    TokenFile file(path);
    std::vector<std::string> texts;
    for (int64_t d = 0; d < file.num_documents(); ++d) {
      const auto offsets = file.document_offsets().subspan(static_cast<size_t>(d), 2);
      std::vector<int32_t> tokens(static_cast<size_t>(offsets[1] - offsets[0]));
      file.read(offsets[0], tokens);
      EXPECT_EQ(tokens.back(), tokenizer->end_of_document());
      texts.push_back(tokenizer->decode(tokens));
    }
    return texts;
  }

  std::ostringstream log_;
};

TEST_F(TokenizeTest, EveryDocumentIsInOneOfTheFilesInItsOrder) {
  put_documents(300);
  for (const auto type : {TokenizerType::byte, TokenizerType::sentencepiece}) {
    const auto report = tokenize(config(type), log_);

    const auto train = texts_of(config().train[0].path, config(type).tokenizer);
    const auto validation = texts_of(config().validation[0].path, config(type).tokenizer);
    std::vector<std::string> merged;
    std::ranges::merge(train, validation, std::back_inserter(merged), [&](auto& a, auto& b) {
      return std::stoi(a.substr(9)) < std::stoi(b.substr(9));
    });
    EXPECT_EQ(merged, documents_of(config().text));
    EXPECT_EQ(report.documents, 300);
    EXPECT_EQ(report.train_tokens, TokenFile(config().train[0].path).num_tokens());
    EXPECT_EQ(report.trained_tokenizer, type == TokenizerType::sentencepiece);
    // The count is binomial with mean 30; the bound is five standard deviations.
    EXPECT_NEAR(static_cast<double>(validation.size()), 30.0, 26.0);
  }
}

TEST_F(TokenizeTest, ADocumentStaysOnItsSideWhenOthersComeAndGo) {
  put_documents(300);
  tokenize(config(), log_);
  const auto before = texts_of(config().validation[0].path, {});
  std::filesystem::remove(folder_.path() / "text/0007.txt");
  put("text/0000_new.txt", "another document\n");

  tokenize(config(), log_);

  const auto train = texts_of(config().train[0].path, {});
  for (const std::string& text : before) {
    EXPECT_EQ(std::ranges::count(train, text), 0);
  }
}

TEST_F(TokenizeTest, RunningAgainDoesNothing) {
  put_documents(100);
  const auto type = TokenizerType::sentencepiece;
  tokenize(config(type), log_);
  const auto before = std::filesystem::last_write_time(config().train[0].path);

  const auto report = tokenize(config(type), log_);

  EXPECT_FALSE(report.trained_tokenizer);
  EXPECT_EQ(report.train_tokens, 0);
  EXPECT_EQ(std::filesystem::last_write_time(config().train[0].path), before);
  EXPECT_THAT(log_.str(), HasSubstr("up to date"));
}

TEST_F(TokenizeTest, TheSameTextGivesTheSameBytesAfterAnyInterruption) {
  put_documents(100);
  const auto type = TokenizerType::sentencepiece;
  tokenize(config(type), log_);
  const auto contents = [&] {
    return std::vector<std::string>{test::read_file(config().train[0].path),
                                    test::read_file(config().validation[0].path),
                                    test::read_file(config(type).tokenizer.model)};
  };
  const auto expected = contents();
  const std::vector<std::function<void()>> interruptions = {
      [&] { std::filesystem::remove_all(folder_.path() / "out"); },
      [&] { std::filesystem::remove(config().train[0].path); },
      [&] { std::filesystem::remove(config().validation[0].path); },
      [&] { std::filesystem::resize_file(config().train[0].path, 1000); },
      [&] { test::write_file(config().train[0].path + ".tmp", "left over"); },
      [&] {
        std::string bytes = expected[0];
        bytes[bytes.size() / 2] ^= 1;
        test::write_file(config().train[0].path, bytes);
      }};

  for (size_t i = 0; i < interruptions.size(); ++i) {
    interruptions[i]();
    tokenize(config(type), log_);
    EXPECT_EQ(contents(), expected) << "interruption " << i;
  }
}

TEST_F(TokenizeTest, TheModelLearnsFromTheTrainingPartAlone) {
  put_documents(100);
  const auto data = config(TokenizerType::sentencepiece);
  tokenize(data, log_);
  std::string text;
  for (const std::string& document : texts_of(data.train[0].path, data.tokenizer)) text += document;
  std::istringstream lines(text);

  const auto model = folder_.path() / "again.model";
  train_sentencepiece(
      [&]() -> std::optional<std::string> {
        std::string line;
        if (!std::getline(lines, line)) return std::nullopt;
        return line;
      },
      data.tokenizer.vocab_size, model);

  EXPECT_EQ(test::read_file(model), test::read_file(data.tokenizer.model));
}

TEST_F(TokenizeTest, ChangedTextAndTokenizersReplaceTheFiles) {
  put_documents(100);
  tokenize(config(), log_);

  put("text/0003.txt", "changed\n");
  EXPECT_GT(tokenize(config(), log_).train_tokens, 0);
  EXPECT_GT(tokenize(config(TokenizerType::sentencepiece), log_).train_tokens, 0);
  auto other_share = config();
  other_share.validation_share = 0.2;
  EXPECT_GT(tokenize(other_share, log_).train_tokens, 0);
}

TEST_F(TokenizeTest, TheEndOfASingleDocumentIsHeldOut) {
  std::string book;
  for (int line = 0; line < 1000; ++line) book += fmt::format("This is line {}.\n", line);
  auto data = config();
  data.text = {put("book.txt", book)};

  tokenize(data, log_);

  const auto train = texts_of(data.train[0].path, {}),
             validation = texts_of(data.validation[0].path, {});
  ASSERT_EQ(train.size(), 1u);
  ASSERT_EQ(validation.size(), 1u);
  EXPECT_EQ(train[0] + validation[0], book);
  EXPECT_EQ(train[0].back(), '\n');
  EXPECT_NEAR(static_cast<double>(validation[0].size()), 0.1 * static_cast<double>(book.size()),
              40.0);
}

TEST_F(TokenizeTest, ADocumentWithoutLinesIsCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += "ü";
  auto data = config();
  for (const double share : {0.1, 0.111, 0.3333}) {
    data.validation_share = share;
    data.text = {put("word.txt", text)};

    tokenize(data, log_);

    const std::string train = texts_of(data.train[0].path, {})[0];
    EXPECT_EQ(train.size() % 2, 0u);
    EXPECT_EQ(train + texts_of(data.validation[0].path, {})[0], text);
  }
}

TEST_F(TokenizeTest, WithoutAValidationFileAllIsTrainedOn) {
  put_documents(50);
  auto data = config();
  data.validation.clear();

  const auto report = tokenize(data, log_);

  EXPECT_EQ(texts_of(data.train[0].path, {}), documents_of(data.text));
  EXPECT_EQ(report.validation_tokens, 0);
}

TEST_F(TokenizeTest, ProgressBeginsWithTheFirstTextThatIsEncoded) {
  put_documents(50);
  std::vector<int64_t> done;
  int64_t all = 0;

  const auto report =
      tokenize(config(TokenizerType::sentencepiece), log_, [&](int64_t bytes, int64_t total) {
        // The survey has told of the text, and the model is there.
        EXPECT_THAT(log_.str(), HasSubstr("trained 330 pieces"));
        done.push_back(bytes);
        all = total;
      });

  EXPECT_EQ(all, report.text_bytes);
  ASSERT_GE(done.size(), 2u);
  EXPECT_EQ(done.front(), 0);
  EXPECT_EQ(done.back(), all);
  EXPECT_TRUE(std::ranges::is_sorted(done));
}

TEST_F(TokenizeTest, WrongConfigurationsAreErrors) {
  put_documents(5);
  const auto error_with = [&](const std::function<void(DataSection&)>& change) {
    auto data = config();
    change(data);
    return error_of([&] { tokenize(data, log_); });
  };

  EXPECT_THAT(error_with([](auto& d) { d.train.clear(); }), HasSubstr("data.train"));
  EXPECT_THAT(error_with([](auto& d) { d.validation = d.train; }), HasSubstr("same file"));
  EXPECT_THAT(error_with([](auto& d) { d.validation = {{d.train[0].path + ".tmp"}}; }),
              HasSubstr("while it is written"));
  EXPECT_THAT(error_with([](auto& d) { d.validation_share = 0.0; }), HasSubstr("validation_share"));
  EXPECT_THAT(error_with([](auto& d) { d.validation_share = 0.6; }), HasSubstr("from 0 to 0.5"));
  EXPECT_THAT(error_with([](auto& d) { d.text.clear(); }), HasSubstr("data.text"));
  EXPECT_THAT(error_with([](auto& d) {
                d.tokenizer = {TokenizerType::sentencepiece, d.train[0].path + ".model", 0};
              }),
              HasSubstr("vocab_size"));
  EXPECT_THAT(error_with([](auto& d) {
                d.tokenizer = {TokenizerType::sentencepiece, "", 300};
              }),
              HasSubstr("data.tokenizer.model"));
}

TEST_F(TokenizeTest, OnlyTokenFilesAreReplaced) {
  put_documents(5);
  auto data = config();
  hdf5::File::create(put("out/other.h5", "")).close();
  const std::string other = test::read_file(folder_.path() / "out/other.h5");
  for (const auto& [path, text] :
       {std::pair{put("out/thesis.tex", "years of work"), "years of work"},
        std::pair{folder_.path() / "out/other.h5", other.c_str()}}) {
    for (auto DataSection::*output : {&DataSection::train, &DataSection::validation}) {
      auto data_with = config();
      (data_with.*output)[0].path = path;
      EXPECT_THAT(error_of([&] { tokenize(data_with, log_); }),
                  AllOf(HasSubstr(path.string()), HasSubstr("is not a token file, so data.")));
    }
    EXPECT_EQ(test::read_file(path), path.extension() == ".h5" ? other : text);
  }
  // Nothing was written before the error.
  EXPECT_FALSE(std::filesystem::exists(data.train[0].path));
}

TEST_F(TokenizeTest, AnInputIsNeverAnOutput) {
  put_documents(5);
  const auto book = put("book", std::string(400, 'x'));
  std::filesystem::create_directories(folder_.path() / "out");
  std::filesystem::create_hard_link(book, folder_.path() / "out/hard");
  const auto soft = link("../book", "out/soft");
  put("empty", "");
  const auto error_with = [&](const std::string& train, const std::vector<std::string>& text) {
    auto data = config();
    data.train = {{train}};
    data.text = text;
    return error_of([&] { tokenize(data, log_); });
  };

  for (const auto& train : {book, folder_.path() / "out/hard", soft}) {
    EXPECT_THAT(error_with(train, {book}), HasSubstr("is not a token file")) << train;
  }
  EXPECT_THAT(error_with(folder_.path() / "empty", {book, folder_.path() / "empty"}),
              HasSubstr("data.train would overwrite"));
  // A token file that is named as text is an input, too.
  auto data = config();
  tokenize(data, log_);
  const std::string before = test::read_file(data.train[0].path);
  EXPECT_THAT(error_with(data.train[0].path, {data.train[0].path}),
              HasSubstr("data.train would overwrite"));
  EXPECT_EQ(test::read_file(data.train[0].path), before);
  // What has the extension of text in a folder of text would be text the next time.
  link("../text", "out/linked");
  for (const char* name : {"text/train.md", "out/linked/new/train.jsonl.gz"}) {
    EXPECT_THAT(error_with(folder_.path() / name, {folder_.path() / "text"}),
                HasSubstr("which data.text would read as text the next time"));
  }
  EXPECT_EQ(error_with(folder_.path() / "text/train.h5", {folder_.path() / "text"}), "");
}

TEST_F(TokenizeTest, AnOutputThatIsALinkIsWrittenToItsTarget) {
  put_documents(20);
  const auto data = config();
  std::filesystem::create_directories(folder_.path() / "disk");
  link("../disk/train.h5", "out/train.h5");

  tokenize(data, log_);
  put("text/0003.txt", "changed\n");
  tokenize(data, log_);

  EXPECT_TRUE(std::filesystem::is_symlink(data.train[0].path));
  EXPECT_GT(TokenFile(folder_.path() / "disk/train.h5").num_tokens(), 0);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path() / "disk"), {}), 1);
}

TEST_F(TokenizeTest, BytesThatAreNotUtf8AreTokensOfTheByteTokenizerAlone) {
  put_documents(100);
  put("text/0000.txt", "caf\xE9\n");
  auto data = config();
  data.validation.clear();

  tokenize(data, log_);
  EXPECT_EQ(texts_of(data.train[0].path, {})[0], "caf\xE9\n");
  EXPECT_THAT(log_.str(), HasSubstr("as they are: bytes that are not UTF-8, in 1 document: "));

  data.encoding_errors = EncodingErrors::replace;
  tokenize(data, log_);
  EXPECT_EQ(texts_of(data.train[0].path, {})[0], "caf\uFFFD\n");

  data = config(TokenizerType::sentencepiece);
  EXPECT_THAT(error_of([&] { tokenize(data, log_); }),
              HasSubstr("0000.txt: byte 3 (0xe9) is not UTF-8"));
  EXPECT_FALSE(std::filesystem::exists(data.tokenizer.model));
  data.encoding_errors = EncodingErrors::replace;
  tokenize(data, log_);
  EXPECT_THAT(log_.str(), HasSubstr("U+FFFD replaces 1 sequence of bytes that are not UTF-8, in 1 "
                                    "document: "));
}

TEST_F(TokenizeTest, TextThatTokensDoNotRestoreIsCountedAndNamed) {
  put_documents(100);
  put("text/0000.txt", "a mark: \u2581!\n");
  auto data = config(TokenizerType::sentencepiece);
  data.validation.clear();

  tokenize(data, log_);

  EXPECT_THAT(log_.str(),
              HasSubstr("changed: the tokens do not restore every byte of 1 document: " +
                        (folder_.path() / "text/0000.txt").string() + " (byte 8)\n"));
}

// A limit on the size of files stands in for a full disk.
TEST_F(TokenizeTest, AFullDiskLosesNothing) {
  put_documents(300);
  tokenize(config(), log_);
  const std::string before = test::read_file(config().train[0].path);
  put("text/9999.txt", "one more\n");
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit kept = limit;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);

  for (const rlim_t room : {0, 3000, 50000}) {
    limit.rlim_cur = room;
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::string error = error_of([&] { tokenize(config(), log_); });
    setrlimit(RLIMIT_FSIZE, &kept);
    EXPECT_THAT(error, HasSubstr("train.h5")) << room;
    EXPECT_EQ(test::read_file(config().train[0].path), before) << room;
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path() / "out"), {}), 2);
  }

  std::signal(SIGXFSZ, handler);
  EXPECT_GT(tokenize(config(), log_).train_tokens, 0);
}

}  // namespace
}  // namespace switchyard
