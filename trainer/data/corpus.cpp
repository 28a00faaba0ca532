#include "trainer/data/corpus.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/data/utf8.h"
#include "trainer/files/outputs.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

bool is_text(const fs::path& path) {
  constexpr std::array<std::string_view, 4> kExtensions = {".txt", ".rst", ".md", ".jsonl"};
  return std::ranges::find(kExtensions, text_extension(path)) != kExtensions.end();
}

// Collects the text files of a folder, each real folder once. Links to folders come last, so that a
// folder inside is known by its own name and not by that of a link to it.
class FolderSearch {
 public:
  FolderSearch(const fs::path& folder, TextNotes& notes) : notes_(notes) {
    followed_ = {folder};
    for (size_t next = 0; next < followed_.size(); ++next) {
      enter(followed_[next]);
      if (next + 1 == followed_.size()) {
        std::ranges::sort(links_);
        followed_.insert(followed_.end(), links_.begin(), links_.end());
        links_.clear();
      }
    }
    // Sorted by bytes, so that the order depends neither on the locale nor on the file system.
    std::ranges::sort(files_, {},
                      [](const fs::path& path) -> const std::string& { return path.native(); });
  }

  const std::vector<fs::path>& files() const { return files_; }
  // The folder, and links to folders in it.
  const std::vector<fs::path>& followed() const { return followed_; }

 private:
  void enter(const fs::path& folder) {
    struct stat status {};
    const bool examined = ::stat(folder.c_str(), &status) == 0;
    require(examined, "cannot examine the folder {}: {}", folder.string(), std::strerror(errno));
    if (!entered_.insert({status.st_dev, status.st_ino}).second) return;
    std::error_code error;
    std::vector<fs::path> entries;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
      entries.push_back(entry->path());
    }
    require(!error, "cannot read the folder {}: {}", folder.string(), error.message());
    std::ranges::sort(entries);  // for the names in the notes
    for (const fs::path& entry : entries) add(entry);
  }

  void add(const fs::path& path) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    const bool leads_nowhere = status.type() == fs::file_type::not_found ||
                               error == std::errc::too_many_symbolic_link_levels;
    require(!error || leads_nowhere, "cannot examine {}: {}", path.string(), error.message());
    if (leads_nowhere) {
      notes_.broken_links.add(path.string());
    } else if (fs::is_directory(status)) {
      if (fs::is_symlink(path)) {
        links_.push_back(path);
      } else {
        enter(path);
      }
    } else if (!fs::is_regular_file(status)) {
      notes_.special_files.add(path.string());
    } else if (is_text(path)) {
      files_.push_back(path);
    } else {
      notes_.other_extensions.add(path.string());
    }
  }

  TextNotes& notes_;
  std::vector<fs::path> files_, followed_;
  std::vector<fs::path> links_;  // to folders, to follow next
  std::set<std::pair<dev_t, ino_t>> entered_;
};

}  // namespace

Corpus::Corpus(const std::vector<std::string>& inputs, std::string_view setting) {
  require(!inputs.empty(), "{} names no text: name files or folders", setting);
  for (const std::string& input : inputs) {
    if (!fs::is_directory(input)) {
      require(fs::exists(input), "{}: {} does not exist", setting, input);
      require(fs::is_regular_file(input),
              "{}: {} is a device or a pipe, but text is read more than once; name a file", setting,
              input);
      files_.emplace_back(input);
      continue;
    }
    const FolderSearch found(input, notes_);
    require(!found.files().empty(),
            "{}: no *.txt, *.rst, *.md or *.jsonl, nor one of them and .gz or .zst, in {}", setting,
            input);
    files_.insert(files_.end(), found.files().begin(), found.files().end());
    folders_.insert(folders_.end(), found.followed().begin(), found.followed().end());
  }
  note_files_read_again();
}

void Corpus::note_files_read_again() {
  std::set<std::pair<dev_t, ino_t>> known;
  for (const fs::path& path : files_) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) continue;  // Opening the file reports it.
    if (!known.insert({status.st_dev, status.st_ino}).second) notes_.read_again.add(path.string());
  }
}

bool Corpus::would_hold(const fs::path& path) const {
  if (!is_text(path)) return false;
  return std::ranges::any_of(folders_,
                             [&](const fs::path& folder) { return is_within(path, folder); });
}

std::optional<Document> DocumentReader::next() {
  try {
    return read();
  } catch (const std::bad_alloc&) {
    fail("{}: a document is larger than the memory; split it",
         corpus_.files()[std::max<size_t>(next_file_, 1) - 1].string());
  }
}

std::optional<Document> DocumentReader::read() {
  for (;;) {
    std::optional<Document> document;
    if (json_lines_) {
      document = read_record();
      if (!document) continue;
    } else {
      if (next_file_ == corpus_.files().size()) return std::nullopt;
      const auto& path = corpus_.files()[next_file_++];
      if (text_extension(path) == ".jsonl") {
        json_lines_.emplace(path);
        continue;
      }
      require(rules_.form == RecordForm::text,
              "{} is one text, but data.record={} reads .jsonl files alone", path.string(),
              to_string(rules_.form));
      document = {TextFile(path).read_all(), path.string()};
      check_encoding(document->text, document->place, invalid_);
    }
    if (!document->text.empty()) return document;
    notes_.empty.add(document->place);
  }
}

std::optional<Document> DocumentReader::read_record() {
  auto line = json_lines_->next_line();
  if (!line) {
    json_lines_.reset();
    return std::nullopt;
  }
  if (!line->is_too_long && line->text.find_first_not_of(" \t\r") == line->text.npos) {
    return std::nullopt;
  }
  const std::string place =
      fmt::format("{}:{}", json_lines_->path().string(), json_lines_->line_number());
  try {
    return parse(std::move(*line), place);
  } catch (const Error& error) {
    if (rules_.max_bad == 0) throw;
    std::string reason = error.what();
    reason.resize(
        std::min(reason.size(), reason.rfind(" [")));  // without its place in this program
    notes_.bad_records.add(reason);
    require(notes_.bad_records.count() <= rules_.max_bad,
            "{}; this is one bad record more than data.max_bad_records = {}", reason,
            rules_.max_bad);
    return std::nullopt;
  }
}

void DocumentReader::check_encoding(std::string& text, const std::string& place,
                                    InvalidUtf8 invalid) {
  const size_t byte = find_invalid_utf8(text);
  if (byte == text.npos) return;
  if (invalid == InvalidUtf8::keep) {
    notes_.kept_bytes.add(place);
    return;
  }
  const bool has_utf16_mark = text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF");
  require(invalid == InvalidUtf8::replace,
          "{}: byte {} (0x{:02x}) is not UTF-8, perhaps {}; convert the file to UTF-8, or set "
          "data.encoding_errors=replace to read U+FFFD there",
          place, byte, static_cast<unsigned char>(text[byte]),
          has_utf16_mark ? "UTF-16" : "Latin-1");
  notes_.replacements += replace_invalid_utf8(text);
  notes_.replaced.add(place);
}

Document DocumentReader::parse(TextFile::Line line, const std::string& place) {
  require(!line.is_too_long, "{}: the line is longer than {} MiB; make shorter documents of it",
          place, TextFile::kLongestLine >> 20);
  check_encoding(line.text, place, invalid_ == InvalidUtf8::keep ? InvalidUtf8::refuse : invalid_);
  std::vector<std::string> other_keys;
  Document document = parse_record(line.text, place, rules_, other_keys);
  for (const std::string& key : other_keys) notes_.count_other_key(key);
  return document;
}

}  // namespace switchyard
