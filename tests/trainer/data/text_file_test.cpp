#include "trainer/data/text_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

class TextFileTest : public ::testing::Test {
 protected:
  static std::string zstd(const std::string& text, int level = 3) {
    std::string bytes(ZSTD_compressBound(text.size()), '\0');
    ZSTD_CCtx* context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
    bytes.resize(ZSTD_compress2(context, bytes.data(), bytes.size(), text.data(), text.size()));
    ZSTD_freeCCtx(context);
    return bytes;
  }

  std::string gzip(const std::string& text) {
    const auto path = folder_.path() / "made.gz";
    const gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
    return test::read_file(path);
  }

  std::filesystem::path put(const std::string& name, const std::string& bytes) {
    test::write_file(folder_.path() / name, bytes);
    return folder_.path() / name;
  }

  std::string text_of(const std::string& name, const std::string& bytes) {
    return TextFile(put(name, bytes)).read_all();
  }

  // Digits that do not compress well, over several blocks.
  static std::string long_text() {
    std::string text;
    for (int i = 0; i < 200000; ++i) text += std::to_string(i * 7919) + (i % 9 == 0 ? "\n" : " ");
    return text;
  }

  test::TemporaryFolder folder_;
};

TEST_F(TextFileTest, ZstdIsDecompressedFrameByFrame) {
  const std::string text = long_text();

  EXPECT_EQ(text_of("a.txt.zst", zstd(text)), text);
  EXPECT_EQ(text_of("a.txt.zst", zstd("one ") + zstd("") + zstd("two")), "one two");
  EXPECT_EQ(text_of("a.txt.zst", zstd("")), "");
  EXPECT_EQ(text_of("a.txt.zst", ""), "");
  EXPECT_EQ(text_of("a.txt", zstd("one")), zstd("one")) << "only the name decides";
}

TEST_F(TextFileTest, DamagedZstdIsAnError) {
  const std::string text = long_text(), bytes = zstd(text);
  const auto error = [&](const std::string& damaged) {
    return error_of([&] { text_of("a.txt.zst", damaged); });
  };

  for (const size_t kept : {size_t{1}, size_t{5}, bytes.size() / 2, bytes.size() - 1}) {
    EXPECT_THAT(error(bytes.substr(0, kept)),
                HasSubstr("a.txt.zst: it ends within its compressed data"))
        << kept;
  }
  for (size_t byte = 0; byte < bytes.size(); byte += bytes.size() / 50) {
    std::string flipped = bytes;
    flipped[byte] = static_cast<char>(flipped[byte] ^ 4);
    EXPECT_THAT(error(flipped), HasSubstr("a.txt.zst")) << byte;
  }
  EXPECT_THAT(error("plain text"), HasSubstr("a.txt.zst is not compressed by zstd"));
  EXPECT_THAT(error(zstd("one") + "text"), HasSubstr("or has other bytes behind its compressed"));
}

TEST_F(TextFileTest, GzipIsDecompressedMemberByMember) {
  const std::string text = long_text();

  EXPECT_EQ(text_of("a.txt.gz", gzip(text)), text);
  EXPECT_EQ(text_of("a.txt.gz", gzip("one ") + gzip("") + gzip("two") + gzip("")), "one two");
  EXPECT_EQ(text_of("a.txt.gz", gzip(text) + gzip(text)), text + text);
  EXPECT_EQ(text_of("a.txt.gz", gzip("one") + std::string(600000, '\0')), "one");
  EXPECT_EQ(text_of("a.txt.gz", ""), "");
  EXPECT_EQ(text_of("a.txt", gzip("one")), gzip("one")) << "only the name decides";
}

TEST_F(TextFileTest, NothingBehindAGzipMemberIsIgnored) {
  const std::string one = gzip("one"), two = gzip("two"), zeros(512, '\0');
  const auto error = [&](const std::string& bytes) {
    return error_of([&] { text_of("a.txt.gz", bytes); });
  };
  const auto at = [&](const char* what, size_t byte) {
    return HasSubstr(fmt::format("a.txt.gz: the {} from byte {} on ", what, byte));
  };

  std::string flipped = two;
  for (size_t byte = 0; byte < two.size(); ++byte) {
    // Time and system, and the bits behind the last block of data, decide nothing.
    if ((byte >= 4 && byte < 10) || byte == two.size() - 9) continue;
    flipped[byte] = static_cast<char>(two[byte] ^ 4);
    EXPECT_THAT(error(one + flipped + gzip("three")),
                HasSubstr(fmt::format("from byte {} on", one.size())))
        << byte;
    flipped[byte] = two[byte];
  }
  flipped[0] = 'x';
  EXPECT_THAT(error(one + flipped), at("bytes", one.size()));
  EXPECT_THAT(error(one + "\n"), at("bytes", one.size()));
  EXPECT_THAT(error(one + zeros + two), at("bytes", one.size()));
  flipped = two;
  flipped[1] = 'x';
  EXPECT_THAT(error(one + flipped), at("gzip member", one.size()));
  EXPECT_THAT(error(one + two.substr(0, 3)),
              HasSubstr(fmt::format("it ends within its compressed data, the gzip member from byte "
                                    "{} on",
                                    one.size())));
  EXPECT_THAT(error(zeros), HasSubstr("a.txt.gz is not compressed by gzip"));
}

TEST_F(TextFileTest, LinesMayEndAnywhereInABlock) {
  for (const size_t length : {0u, 1u, 262142u, 262143u, 262144u, 262145u, 600000u}) {
    const std::string line(length, 'x');
    TextFile file(put("a.txt", line + "\n" + line + "\r\n\n" + line));
    std::vector<std::string> lines;
    while (auto next = file.next_line()) lines.push_back(next->text);

    std::vector<std::string> expected = {line, line + "\r", ""};
    if (length > 0) expected.push_back(line);
    EXPECT_EQ(lines, expected) << length;
    EXPECT_EQ(file.line_number(), std::ssize(expected));
  }
}

TEST_F(TextFileTest, ALineThatIsTooLongIsNotKept) {
  const auto path = folder_.path() / "a.jsonl.gz";
  const gzFile file = gzopen(path.c_str(), "wb1");
  const std::string block(1 << 20, 'x');
  const auto write = [&](const std::string& text) {
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  };
  for (size_t i = 0; i < TextFile::kLongestLine >> 20; ++i) write(block);
  write("\n");
  for (size_t i = 0; i < TextFile::kLongestLine >> 20; ++i) write(block);
  write("x\nshort");
  gzclose(file);

  TextFile text(path);
  const auto longest = text.next_line(), too_long = text.next_line(), after = text.next_line();

  EXPECT_FALSE(longest->is_too_long);
  EXPECT_EQ(longest->text.size(), TextFile::kLongestLine);
  EXPECT_TRUE(too_long->is_too_long);
  EXPECT_EQ(too_long->text, "");
  EXPECT_EQ(after->text, "short");
  EXPECT_EQ(text.line_number(), 3);
}

}  // namespace
}  // namespace switchyard
