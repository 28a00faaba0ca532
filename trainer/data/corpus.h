#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

struct gzFile_s;  // zlib's

namespace switchyard {

// Text to train on: files, and folders that are searched for *.txt, *.rst, *.md and *.jsonl, all
// also with .gz after it. A file is one document; in .jsonl files each line is an object whose
// "text" is one.
class Corpus {
 public:
  // Throws Error if an input does not exist or there is no file. The order is that of the inputs,
  // and within a folder that of the paths' bytes.
  explicit Corpus(const std::vector<std::string>& inputs);

  const std::vector<std::filesystem::path>& files() const { return files_; }

 private:
  std::vector<std::filesystem::path> files_;
};

// A text file, decompressed if its name ends in .gz. Reads throw Error on damage.
class TextFile {
 public:
  explicit TextFile(std::filesystem::path path);
  ~TextFile();
  TextFile(TextFile&&) = delete;

  std::string read_all();
  // The next line without its line end; none at the end of the file.
  std::optional<std::string> next_line();

  const std::filesystem::path& path() const { return path_; }
  int64_t line_number() const { return line_number_; }

 private:
  bool refill();

  std::filesystem::path path_;
  gzFile_s* file_ = nullptr;
  std::string buffer_;
  size_t begin_ = 0;  // first byte of the buffer not yet returned
  int64_t line_number_ = 0;
};

// Reads the documents of a corpus one by one and skips empty ones.
class DocumentReader {
 public:
  explicit DocumentReader(const Corpus& corpus) : corpus_(corpus) {}

  // The next document; none at the end. Throws Error naming the file, and the line of a bad JSON
  // object.
  std::optional<std::string> next();

 private:
  std::string parse(const std::string& line) const;

  const Corpus& corpus_;
  size_t next_file_ = 0;
  std::optional<TextFile> json_lines_;
};

}  // namespace switchyard
