#include "trainer/data/token_file.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <system_error>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

constexpr int64_t kVersion = 1;
constexpr const char* kFormat = "switchyard.tokens";
constexpr const char* kRemedy = "make it again with `switchyard tokenize`";
// 128 or 256 KiB: enough to read at full speed, little enough to check at a sample's first touch.
constexpr int64_t kChunkTokens = 65536;

int64_t bytes_per_token(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

template <class T>
uint32_t checksum(const std::vector<T>& values) {
  return crc32c(std::as_bytes(std::span(values)));
}

}  // namespace

namespace {

const std::filesystem::path& existing(const std::filesystem::path& path) {
  require(std::filesystem::exists(path),
          "token file {} does not exist; make it with `switchyard tokenize`", path.string());
  return path;
}

}  // namespace

TokenFile::TokenFile(std::filesystem::path path) : path_(std::move(path)), bytes_(existing(path_)) {
  try {
    load_header();
  } catch (const Error& error) {
    fail("token file {} cannot be used ({}); {}", path_.string(), error.what(), kRemedy);
  }
  intact_.resize(chunk_checksums_.size());
}

void TokenFile::load_header() {
  const auto file = hdf5::File::open(path_);
  require(file.has_attribute("format") && file.get_string("format") == kFormat,
          "it is not a token file");
  require(file.get_int("version") == kVersion, "its format version is {}, this program reads {}",
          file.get_int("version"), kVersion);
  info_ = {.vocab_size = file.get_int("vocab_size"),
           .end_of_document = static_cast<int32_t>(file.get_int("end_of_document")),
           .tokenizer = file.get_string("tokenizer"),
           .tokenizer_hash = file.get_string("tokenizer_hash"),
           .source = file.get_string("source"),
           .source_hash = file.get_string("source_hash")};
  chunk_tokens_ = file.get_int("chunk_tokens");
  token_bytes_ = bytes_per_token(info_.vocab_size);

  const hdf5::Dataset tokens = file.dataset("tokens");
  const auto element = token_bytes_ == 2 ? hdf5::Element::u16 : hdf5::Element::u32;
  require(tokens.element() == element && tokens.shape().size() == 1,
          "its tokens are not a list of {}", hdf5::to_string(element));
  num_tokens_ = tokens.num_elements();
  tokens_offset_ = tokens.file_offset();

  const hdf5::Dataset offsets = file.dataset("document_offsets");
  document_offsets_ = offsets.read_all<int64_t>();
  check_offsets(static_cast<uint32_t>(offsets.get_int("crc32c")));
  chunk_checksums_ = file.dataset("chunk_checksums").read_all<uint32_t>();
  require(chunk_tokens_ > 0 && static_cast<int64_t>(chunk_checksums_.size()) ==
                                   (num_tokens_ + chunk_tokens_ - 1) / chunk_tokens_,
          "it has {} checksums for {} tokens in chunks of {}", chunk_checksums_.size(), num_tokens_,
          chunk_tokens_);
}

void TokenFile::check_offsets(uint32_t stored_checksum) const {
  require(checksum(document_offsets_) == stored_checksum,
          "its document offsets are damaged: checksum {:08x} instead of {:08x}",
          checksum(document_offsets_), stored_checksum);
  // Increasing: every document has its end-of-document token.
  require(document_offsets_.size() > 1 && document_offsets_.front() == 0 &&
              document_offsets_.back() == num_tokens_ &&
              std::ranges::adjacent_find(document_offsets_, std::greater_equal<>()) ==
                  document_offsets_.end(),
          "its document offsets do not divide its {} tokens", num_tokens_);
}

uint64_t TokenFile::fingerprint() const {
  return stream_id(fmt::format("{} {} {:08x} {:08x}", info_.tokenizer_hash, num_tokens_,
                               checksum(document_offsets_), checksum(chunk_checksums_)));
}

int64_t TokenFile::chunk_size(int64_t chunk) const {
  return std::min(chunk_tokens_, num_tokens_ - chunk * chunk_tokens_);
}

void TokenFile::read_bytes(int64_t first_token, std::span<std::byte> bytes) const {
  try {
    bytes_.read(tokens_offset_ + first_token * token_bytes_, bytes);
  } catch (const Error& error) {
    fail("token file {} cannot be read ({}); {}", path_.string(), error.what(), kRemedy);
  }
}

std::span<const std::byte> TokenFile::check_chunk(int64_t chunk) {
  buffer_.resize(static_cast<size_t>(chunk_size(chunk) * token_bytes_));
  read_bytes(chunk * chunk_tokens_, buffer_);
  const uint32_t expected = chunk_checksums_[static_cast<size_t>(chunk)];
  require(crc32c(buffer_) == expected,
          "token file {} is damaged: chunk {} (tokens {} to {}) has checksum {:08x} instead of "
          "{:08x}; {}",
          path_.string(), chunk, chunk * chunk_tokens_,
          chunk * chunk_tokens_ + chunk_size(chunk) - 1, crc32c(buffer_), expected, kRemedy);
  check_vocabulary(chunk, buffer_);
  intact_[static_cast<size_t>(chunk)] = true;
  return buffer_;
}

void TokenFile::check_vocabulary(int64_t chunk, std::span<const std::byte> bytes) const {
  std::vector<int32_t> tokens(bytes.size() / static_cast<size_t>(token_bytes_));
  widen(bytes, tokens);
  const auto outside = std::ranges::find_if(
      tokens, [this](int32_t token) { return token < 0 || token >= info_.vocab_size; });
  if (outside == tokens.end()) return;
  fail("token file {}: the token {} at position {} is outside its vocabulary of {}; {}",
       path_.string(), static_cast<uint32_t>(*outside),
       chunk * chunk_tokens_ + (outside - tokens.begin()), info_.vocab_size, kRemedy);
}

void TokenFile::widen(std::span<const std::byte> bytes, std::span<int32_t> tokens) const {
  if (token_bytes_ == 4) {
    std::memcpy(tokens.data(), bytes.data(), bytes.size());
    return;
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    uint16_t token;
    std::memcpy(&token, bytes.data() + 2 * i, sizeof(token));
    tokens[i] = token;
  }
}

void TokenFile::read(int64_t begin, std::span<int32_t> tokens) {
  require(begin >= 0 && begin + static_cast<int64_t>(tokens.size()) <= num_tokens_,
          "token file {}: tokens {} to {} of {} were asked for", path_.string(), begin,
          begin + static_cast<int64_t>(tokens.size()), num_tokens_);
  while (!tokens.empty()) {
    const int64_t chunk = begin / chunk_tokens_, in_chunk = begin % chunk_tokens_;
    const auto count = std::min(static_cast<int64_t>(tokens.size()), chunk_size(chunk) - in_chunk);
    const auto num_bytes = static_cast<size_t>(count * token_bytes_);
    std::span<const std::byte> bytes;
    if (intact_[static_cast<size_t>(chunk)]) {
      buffer_.resize(num_bytes);
      read_bytes(begin, buffer_);
      bytes = buffer_;
    } else {
      bytes = check_chunk(chunk).subspan(static_cast<size_t>(in_chunk * token_bytes_), num_bytes);
    }
    widen(bytes, tokens.first(static_cast<size_t>(count)));
    tokens = tokens.subspan(static_cast<size_t>(count));
    begin += count;
  }
}

void TokenFile::verify() {
  for (int64_t chunk = 0; chunk < static_cast<int64_t>(intact_.size()); ++chunk) {
    if (!intact_[static_cast<size_t>(chunk)]) check_chunk(chunk);
  }
}

void require_tokenizer(const TokenFile& file, const Tokenizer& tokenizer) {
  require(file.info().tokenizer_hash == tokenizer.hash(),
          "token file {} was made with the {} tokenizer {}, data.tokenizer is the {} tokenizer {}; "
          "{}",
          file.path().string(), file.info().tokenizer, file.info().tokenizer_hash,
          to_string(tokenizer.type()), tokenizer.hash(), kRemedy);
}

TokenFileWriter::TokenFileWriter(std::filesystem::path path, TokenFileInfo info)
    : unfinished_(path),
      spool_path_(path.string() + ".spool.tmp"),
      info_(std::move(info)),
      token_bytes_(bytes_per_token(info_.vocab_size)),
      spool_(spool_path_) {
  require(info_.end_of_document >= 0 && info_.end_of_document < info_.vocab_size,
          "the end-of-document token {} is outside the vocabulary of {}", info_.end_of_document,
          info_.vocab_size);
}

TokenFileWriter::~TokenFileWriter() {
  std::error_code ignored;
  std::filesystem::remove(spool_path_, ignored);
}

void TokenFileWriter::append_document(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) append_token(token);
  append_token(info_.end_of_document);
  document_offsets_.push_back(num_tokens() + static_cast<int64_t>(tokens.size()) + 1);
}

void TokenFileWriter::append_token(int32_t token) {
  require(token >= 0 && token < info_.vocab_size, "the token {} is outside the vocabulary of {}",
          token, info_.vocab_size);
  // Little-endian, so the low bytes come first.
  const auto* bytes = reinterpret_cast<const std::byte*>(&token);
  chunk_.insert(chunk_.end(), bytes, bytes + token_bytes_);
  if (static_cast<int64_t>(chunk_.size()) == kChunkTokens * token_bytes_) flush_chunk();
}

void TokenFileWriter::flush_chunk() {
  chunk_checksums_.push_back(checksum(chunk_));
  spool_.write(chunk_);
  chunk_.clear();
}

void TokenFileWriter::finish() {
  require(num_documents() > 0, "token file {} would have no document", unfinished_.path().string());
  if (!chunk_.empty()) flush_chunk();
  spool_.close();
  write_file();
  unfinished_.publish();
}

void TokenFileWriter::write_file() {
  auto file = hdf5::File::create(unfinished_.path());
  file.set_string("format", kFormat);
  file.set_int("version", kVersion);
  file.set_int("vocab_size", info_.vocab_size);
  file.set_int("end_of_document", info_.end_of_document);
  file.set_string("tokenizer", info_.tokenizer);
  file.set_string("tokenizer_hash", info_.tokenizer_hash);
  file.set_string("source", info_.source);
  file.set_string("source_hash", info_.source_hash);
  file.set_int("chunk_tokens", kChunkTokens);

  const auto element = token_bytes_ == 2 ? hdf5::Element::u16 : hdf5::Element::u32;
  hdf5::Dataset tokens = file.create_dataset("tokens", element, {num_tokens()});
  copy_tokens([&](std::span<const std::byte> bytes, int64_t first) {
    tokens.write_bytes(bytes, {{first}, {static_cast<int64_t>(bytes.size()) / token_bytes_}});
  });
  hdf5::Dataset offsets = file.create_dataset("document_offsets", hdf5::Element::i64,
                                              {static_cast<int64_t>(document_offsets_.size())});
  offsets.write<int64_t>(document_offsets_);
  offsets.set_int("crc32c", checksum(document_offsets_));
  file.create_dataset("chunk_checksums", hdf5::Element::u32,
                      {static_cast<int64_t>(chunk_checksums_.size())})
      .write<uint32_t>(chunk_checksums_);
  file.close();
}

void TokenFileWriter::copy_tokens(
    const std::function<void(std::span<const std::byte>, int64_t first)>& write) {
  const InputFile spool(spool_path_);
  for (int64_t first = 0; first < num_tokens(); first += kChunkTokens) {
    const int64_t count = std::min(kChunkTokens, num_tokens() - first);
    chunk_.resize(static_cast<size_t>(count * token_bytes_));
    spool.read(first * token_bytes_, chunk_);
    write(chunk_, first);
  }
}

}  // namespace switchyard
