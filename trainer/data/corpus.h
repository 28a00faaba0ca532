#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trainer/data/records.h"
#include "trainer/data/text_file.h"
#include "trainer/data/text_notes.h"

namespace switchyard {

// Text to train on: files, and folders that are searched for *.txt, *.rst, *.md and *.jsonl, all
// also with .gz or .zst after it. Links to folders are followed, but no folder is searched twice. A
// file is one document; in .jsonl files each line is an object that holds one.
class Corpus {
 public:
  // Throws Error if an input does not exist or cannot be read, or if there is no file. The order is
  // that of the inputs, and within a folder that of the paths' bytes.
  //   setting  that names the inputs, for messages
  explicit Corpus(const std::vector<std::string>& inputs, std::string_view setting = "data.text");

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

// What becomes of bytes that are not UTF-8. JSON consists of UTF-8, so .jsonl files keep none.
enum class InvalidUtf8 { refuse, replace, keep };

// Reads the documents of a corpus one by one and skips empty ones.
class DocumentReader {
 public:
  explicit DocumentReader(const Corpus& corpus, InvalidUtf8 invalid = InvalidUtf8::refuse,
                          RecordRules rules = {})
      : corpus_(corpus), invalid_(invalid), rules_(std::move(rules)) {}

  // The next document; none at the end. Throws Error naming the file, and the line of a bad JSON
  // object if there are more of them than the rules allow, or the place of a byte that is not
  // UTF-8.
  std::optional<Document> next();

  // What the documents before lack or have changed.
  const TextNotes& notes() const { return notes_; }

 private:
  std::optional<Document> read();
  // Nothing at the end of the file, and for a line that is left out.
  std::optional<Document> read_record();
  Document parse(TextFile::Line line, const std::string& place);
  void check_encoding(std::string& text, const std::string& place, InvalidUtf8 invalid);

  const Corpus& corpus_;
  InvalidUtf8 invalid_;
  RecordRules rules_;
  TextNotes notes_;
  size_t next_file_ = 0;
  std::optional<TextFile> json_lines_;
};

}  // namespace switchyard
