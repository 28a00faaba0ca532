#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace switchyard {

// A number of files or documents, with the names of the first ones.
class NamedCount {
 public:
  void add(const std::string& name);
  int64_t count() const { return count_; }
  // "a.txt, b.txt and 4 more"
  std::string names() const;

 private:
  int64_t count_ = 0;
  std::vector<std::string> first_;
};

// What `tokenize` leaves out of the text, or changes in it. Nothing of that happens without a count
// and names.
struct TextNotes {
  // Of folders
  NamedCount other_extensions;
  NamedCount broken_links;
  NamedCount special_files;  // devices, pipes and sockets
  NamedCount read_again;     // files that were read under another name, too

  // Of files
  NamedCount empty;                           // documents
  NamedCount bad_records;                     // of .jsonl files, and why each cannot be read
  std::map<std::string, int64_t> other_keys;  // of records in .jsonl files, and how many have them
  int64_t more_keys = 0;                      // uses of other names, once there are too many
  NamedCount replaced;                        // documents with bytes that are not UTF-8
  int64_t replacements = 0;
  NamedCount kept_bytes;  // documents whose bytes are not UTF-8, and are tokens all the same

  // Of tokens
  NamedCount unknown;  // documents with text outside the vocabulary
  int64_t unknown_tokens = 0;
  NamedCount changed;  // documents that are not restored from their tokens byte for byte

  void count_other_key(const std::string& key);

  // A line for each that is not zero.
  std::vector<std::string> lines() const;
};

}  // namespace switchyard
