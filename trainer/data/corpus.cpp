#include "trainer/data/corpus.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

constexpr unsigned kBlockBytes = 1 << 18;

// The extension, without a final .gz.
std::string text_extension(const std::filesystem::path& path) {
  return (path.extension() == ".gz" ? path.stem() : path).extension().string();
}

bool is_text(const std::filesystem::path& path) {
  constexpr std::array<std::string_view, 4> kExtensions = {".txt", ".rst", ".md", ".jsonl"};
  return std::ranges::find(kExtensions, text_extension(path)) != kExtensions.end();
}

std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  std::filesystem::recursive_directory_iterator entry(folder, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    if (is_text(entry->path()) && entry->is_regular_file()) files.push_back(entry->path());
  }
  require(!error, "cannot read the folder {}: {}", folder.string(), error.message());
  // Sorted by bytes, so that the order depends neither on the locale nor on the file system.
  std::ranges::sort(files, {},
                    [](const auto& path) -> const std::string& { return path.native(); });
  return files;
}

// Why a line is no JSON, in words for people who did not write its bytes by hand.
std::string explain_json_error(std::string_view line, const nlohmann::json::parse_error& error) {
  const std::string_view message = error.what();
  const auto says = [&](std::string_view words) { return message.find(words) != message.npos; };
  if (says("ill-formed UTF-8")) {
    return "the text is not UTF-8, perhaps Latin-1; convert the file to UTF-8";
  }
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
    if (!std::filesystem::is_directory(input)) {
      require(std::filesystem::exists(input), "data.text: {} does not exist", input);
      files_.emplace_back(input);
      continue;
    }
    const auto found = files_in(input);
    require(!found.empty(), "data.text: no *.txt, *.rst, *.md or *.jsonl[.gz] in {}", input);
    files_.insert(files_.end(), found.begin(), found.end());
  }
}

TextFile::TextFile(std::filesystem::path path) : path_(std::move(path)) {
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

std::optional<std::string> DocumentReader::next() {
  for (;;) {
    if (json_lines_) {
      const auto line = json_lines_->next_line();
      if (!line) {
        json_lines_.reset();
      } else if (line->find_first_not_of(" \t\r") != line->npos) {
        if (std::string text = parse(*line); !text.empty()) return text;
      }
      continue;
    }
    if (next_file_ == corpus_.files().size()) return std::nullopt;
    const auto& path = corpus_.files()[next_file_++];
    if (text_extension(path) == ".jsonl") {
      json_lines_.emplace(path);
    } else if (std::string text = TextFile(path).read_all(); !text.empty()) {
      return text;
    }
  }
}

std::string DocumentReader::parse(const std::string& line) const {
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(line);
  } catch (const nlohmann::json::parse_error& error) {
    fail("{}:{}:{}: {}", json_lines_->path().string(), json_lines_->line_number(), error.byte,
         explain_json_error(line, error));
  } catch (const nlohmann::json::out_of_range&) {
    fail("{}:{}: a number is too large to be read; write null instead",
         json_lines_->path().string(), json_lines_->line_number());
  }
  require(object.is_object(), "{}:{}: is not a JSON object, but {} {}",
          json_lines_->path().string(), json_lines_->line_number(), object.is_array() ? "an" : "a",
          object.type_name());
  const auto text = object.find("text");
  require(text != object.end() && text->is_string(), "{}:{}: the object has no string \"text\"",
          json_lines_->path().string(), json_lines_->line_number());
  return text->get<std::string>();
}

}  // namespace switchyard
