#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/data/text_notes.h"

struct gzFile_s;  // zlib's

namespace switchyard {

// Text to train on: files, and folders that are searched for *.txt, *.rst, *.md and *.jsonl, all
// also with .gz after it. Links to folders are followed, but no folder is searched twice. A file is
// one document; in .jsonl files each line is an object whose "text" is one.
class Corpus {
 public:
  // Throws Error if an input does not exist or cannot be read, or if there is no file. The order is
  // that of the inputs, and within a folder that of the paths' bytes.
  explicit Corpus(const std::vector<std::string>& inputs);

  const std::vector<std::filesystem::path>& files() const { return files_; }
  // What was left out of the folders.
  const TextNotes& notes() const { return notes_; }
  // Whether a file of this name would be found in the folders, and so be text of the next corpus.
  bool would_hold(const std::filesystem::path& path) const;

 private:
  void note_files_read_again();

  std::vector<std::filesystem::path> files_;
  std::vector<std::filesystem::path> folders_;  // inputs, and targets of links that were followed
  TextNotes notes_;
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

// What becomes of bytes that are not UTF-8. JSON consists of UTF-8, so .jsonl files keep none.
enum class InvalidUtf8 { refuse, replace, keep };

struct Document {
  std::string text;
  std::string place;  // the file, and the line of a .jsonl file
};

// Reads the documents of a corpus one by one and skips empty ones.
class DocumentReader {
 public:
  explicit DocumentReader(const Corpus& corpus, InvalidUtf8 invalid = InvalidUtf8::refuse)
      : corpus_(corpus), invalid_(invalid) {}

  // The next document; none at the end. Throws Error naming the file, and the line of a bad JSON
  // object, or the place of a byte that is not UTF-8.
  std::optional<Document> next();

  // What the documents before lack or have changed.
  const TextNotes& notes() const { return notes_; }

 private:
  std::optional<Document> read();
  Document parse(std::string line);
  void check_encoding(std::string& text, const std::string& place, InvalidUtf8 invalid);

  const Corpus& corpus_;
  InvalidUtf8 invalid_;
  TextNotes notes_;
  size_t next_file_ = 0;
  std::optional<TextFile> json_lines_;
};

}  // namespace switchyard
