#include "trainer/data/text_notes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string_view>

namespace switchyard {
namespace {

constexpr size_t kNames = 5;

// "1 file", "3 files"
std::string counted(int64_t count, std::string_view thing) {
  return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

}  // namespace

void NamedCount::add(const std::string& name) {
  if (static_cast<size_t>(count_++) < kNames) first_.push_back(name);
}

std::string NamedCount::names() const {
  const std::string text = fmt::format("{}", fmt::join(first_, ", "));
  const int64_t rest = count_ - static_cast<int64_t>(first_.size());
  return rest > 0 ? fmt::format("{} and {} more", text, rest) : text;
}

void TextNotes::count_other_key(const std::string& key) {
  constexpr size_t kMostNames = 100;
  const auto found = other_keys.find(key);
  if (found != other_keys.end()) {
    ++found->second;
  } else if (other_keys.size() < kMostNames) {
    other_keys[key] = 1;
  } else {
    ++more_keys;
  }
}

std::vector<std::string> TextNotes::lines() const {
  std::vector<std::string> lines;
  const auto note = [&](const NamedCount& what, std::string_view thing, std::string_view before,
                        std::string_view after) {
    if (what.count() == 0) return;
    lines.push_back(
        fmt::format("{}{}{}: {}", before, counted(what.count(), thing), after, what.names()));
  };
  note(other_extensions, "file", "left out: ",
       " whose names do not end in .txt, .rst, .md or .jsonl, or one of them and .gz or .zst");
  note(broken_links, "link", "left out: ", " to nothing");
  note(special_files, "special file", "left out: ", " (devices, pipes, sockets)");
  note(empty, "empty document", "left out: ", "");
  note(bad_records, "bad record", "left out: ", "");
  for (const auto& [key, count] : other_keys) {
    lines.push_back(fmt::format("left out: \"{}\" of {}, which is not their text", key,
                                counted(count, "record")));
  }
  if (more_keys > 0) {
    lines.push_back(fmt::format("left out: {} under other names, which are not their text",
                                counted(more_keys, "value")));
  }
  note(read_again, "file", "read again: ", " under another name");
  note(replaced, "document",
       fmt::format("changed: U+FFFD replaces {} that are not UTF-8, in ",
                   counted(replacements, "sequence") + " of bytes"),
       "");
  note(kept_bytes, "document", "as they are: bytes that are not UTF-8, in ", "");
  note(unknown, "document",
       fmt::format("changed: {} for text outside the vocabulary, in ",
                   counted(unknown_tokens, "token")),
       "");
  note(changed, "document", "changed: the tokens do not restore every byte of ", "");
  return lines;
}

}  // namespace switchyard
