#include "trainer/data/corpus.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <nlohmann/json.hpp>
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

constexpr unsigned kBlockBytes = 1 << 18;

// The extension, without a final .gz.
std::string text_extension(const fs::path& path) {
  return (path.extension() == ".gz" ? path.stem() : path).extension().string();
}

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

// JSON leaves open which one counts, and the library takes the last.
bool has_two_texts(std::string_view line) {
  constexpr std::string_view kKey = "\"text\"";
  const size_t first = line.find(kKey);
  if (first == line.npos || line.find(kKey, first + 1) == line.npos) return false;
  int count = 0;
  using Event = nlohmann::json::parse_event_t;
  [[maybe_unused]] const auto object =
      nlohmann::json::parse(line, [&](int depth, Event event, const nlohmann::json& parsed) {
        if (event == Event::key && depth == 1 && parsed == "text") ++count;
        return true;
      });
  return count > 1;
}

// Why a line is no JSON, in words for people who did not write its bytes by hand.
std::string explain_json_error(std::string_view line, const nlohmann::json::parse_error& error) {
  const std::string_view message = error.what();
  const auto says = [&](std::string_view words) { return message.find(words) != message.npos; };
  if (says("surrogate")) return "a \\u escape is half of a surrogate pair; write both halves";
  const size_t at = error.byte > 0 ? error.byte - 1 : 0;
  const size_t word = std::min(line.find_last_of(" \t,:[{", at) + 1, line.size());
  for (const std::string_view name : {"NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"}) {
    if (line.substr(word).starts_with(name)) {
      return fmt::format("JSON has no {}; write null instead", name);
    }
  }
  // The library's message ends with what it read, which may be no text at all.
  const size_t begin = message.find(" - "), end = message.find("; last read");
  return fmt::format("is no JSON: {}",
                     begin == message.npos ? message : message.substr(begin + 3, end - begin - 3));
}

}  // namespace

Corpus::Corpus(const std::vector<std::string>& inputs) {
  require(!inputs.empty(), "data.text names no text to tokenize");
  for (const std::string& input : inputs) {
    if (!fs::is_directory(input)) {
      require(fs::exists(input), "data.text: {} does not exist", input);
      require(fs::is_regular_file(input),
              "data.text: {} is a device or a pipe, but text is read more than once; name a file",
              input);
      files_.emplace_back(input);
      continue;
    }
    const FolderSearch found(input, notes_);
    require(!found.files().empty(), "data.text: no *.txt, *.rst, *.md or *.jsonl[.gz] in {}",
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

TextFile::TextFile(fs::path path) : path_(std::move(path)) {
  file_ = gzopen(path_.c_str(), "rbe");
  require(file_ != nullptr, "cannot open {}: {}", path_.string(), std::strerror(errno));
  gzbuffer(file_, kBlockBytes);
}

TextFile::~TextFile() { gzclose(file_); }

bool TextFile::refill() {
  buffer_.erase(0, begin_);
  begin_ = 0;
  const size_t kept = buffer_.size();
  buffer_.resize(kept + kBlockBytes);
  const int count = gzread(file_, buffer_.data() + kept, kBlockBytes);
  // zlib returns a file without gzip's magic number unchanged, and the readable part of a damaged
  // file before it reports the damage.
  require(path_.extension() != ".gz" || count <= 0 || gzdirect(file_) == 0,
          "{} is not compressed by gzip", path_.string());
  int status = Z_OK;
  const char* reason = gzerror(file_, &status);
  require(status == Z_OK || status == Z_STREAM_END, "cannot read {}: {}", path_.string(),
          status == Z_ERRNO ? std::strerror(errno) : reason);
  buffer_.resize(kept + static_cast<size_t>(std::max(count, 0)));
  return count > 0;
}

std::string TextFile::read_all() {
  while (refill()) {
  }
  return std::move(buffer_);
}

std::optional<std::string> TextFile::next_line() {
  size_t searched = begin_;
  size_t end = buffer_.find('\n', searched);
  while (end == buffer_.npos) {
    searched = buffer_.size() - begin_;
    if (!refill()) break;
    end = buffer_.find('\n', searched);
  }
  if (begin_ == buffer_.size()) return std::nullopt;
  ++line_number_;
  const size_t length = std::min(end, buffer_.size()) - begin_;
  std::string line = buffer_.substr(begin_, length);
  begin_ = std::min(begin_ + length + 1, buffer_.size());
  return line;
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
    Document document;
    if (json_lines_) {
      auto line = json_lines_->next_line();
      if (!line) {
        json_lines_.reset();
        continue;
      }
      if (line->find_first_not_of(" \t\r") == line->npos) continue;
      document = parse(std::move(*line));
    } else {
      if (next_file_ == corpus_.files().size()) return std::nullopt;
      const auto& path = corpus_.files()[next_file_++];
      if (text_extension(path) == ".jsonl") {
        json_lines_.emplace(path);
        continue;
      }
      document = {TextFile(path).read_all(), path.string()};
      check_encoding(document.text, document.place, invalid_);
    }
    if (!document.text.empty()) return document;
    notes_.empty.add(document.place);
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

Document DocumentReader::parse(std::string line) {
  const std::string file = json_lines_->path().string();
  const std::string place = fmt::format("{}:{}", file, json_lines_->line_number());
  check_encoding(line, place, invalid_ == InvalidUtf8::keep ? InvalidUtf8::refuse : invalid_);
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(line);
  } catch (const nlohmann::json::parse_error& error) {
    fail("{}:{}: {}", place, error.byte, explain_json_error(line, error));
  } catch (const nlohmann::json::out_of_range&) {
    fail("{}: a number is too large to be read; write null instead", place);
  }
  require(object.is_object(), "{}: is not a JSON object, but {} {}", place,
          object.is_array() ? "an" : "a", object.type_name());
  const auto text = object.find("text");
  require(text != object.end() && text->is_string(), "{}: the object has no string \"text\"",
          place);
  require(!has_two_texts(line), "{}: the object has two strings \"text\"; make an object of each",
          place);
  for (const auto& [key, value] : object.items()) {
    if (key != "text") ++notes_.other_keys[key];
  }
  return {text->get<std::string>(), place};
}

}  // namespace switchyard
