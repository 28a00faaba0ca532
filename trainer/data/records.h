#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "trainer/config/run_config.h"

namespace switchyard {

// A part of a document's text: from the end of the part before to `end`.
struct Segment {
  size_t end = 0;
  bool learn = false;  // whether its tokens count as targets

  bool operator==(const Segment&) const = default;
};

struct Document {
  std::string text;
  std::string place;  // the file, and the line of a .jsonl file
  // Up to the end of the text; empty if all of it counts and is tokenized at once.
  std::vector<Segment> segments = {};
};

// What a line of a .jsonl file holds.
struct RecordRules {
  RecordForm form = RecordForm::text;
  std::string field = "text";  // of `text` and `segments`: a path of keys, with dots between them
  int64_t max_bad = 0;         // lines that are left out because they cannot be read
};

// Reads an object of JSON. Throws Error that names the place unless it has the strings, or the
// list of segments, each of them once.
//   other_keys  the keys of the object that are no part of the document are added to it
Document parse_record(const std::string& line, const std::string& place, const RecordRules& rules,
                      std::vector<std::string>& other_keys);

}  // namespace switchyard
