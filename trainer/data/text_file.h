#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace switchyard {

// The bytes of a file, decompressed. Throws Error on damage.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // The number of bytes that were read; 0 at the end of the file alone.
  virtual size_t read(std::span<char> bytes) = 0;
};

// A text file, decompressed if its name ends in .gz or .zst. Reads throw Error on damage.
class TextFile {
 public:
  // Longer lines are not kept in memory.
  static constexpr size_t kLongestLine = size_t{64} << 20;

  explicit TextFile(std::filesystem::path path);

  std::string read_all();

  struct Line {
    std::string text;  // without its line end
    bool is_too_long = false;
  };
  // None at the end of the file.
  std::optional<Line> next_line();

  const std::filesystem::path& path() const { return path_; }
  int64_t line_number() const { return line_number_; }

 private:
  bool refill();

  std::filesystem::path path_;
  std::unique_ptr<ByteStream> stream_;
  std::string block_;
  size_t begin_ = 0;  // first byte of the block not yet returned
  int64_t line_number_ = 0;
};

// The extension of a file name, without a final .gz or .zst.
std::string text_extension(const std::filesystem::path& path);

}  // namespace switchyard
