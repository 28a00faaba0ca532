#include "trainer/data/token_file.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

constexpr int64_t kVersion = 1, kVersionWithMask = 2;
constexpr const char* kFormat = "switchyard.tokens";
constexpr const char* kRemedy = "make it again with `switchyard tokenize`";
// 128 or 256 KiB: large enough to read at full speed, small enough to check when a sample is read.
constexpr int64_t kChunkTokens = 65536;

int64_t bytes_per_token(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

hdf5::Element element_of_tokens(int64_t token_bytes) {
  return token_bytes == 2 ? hdf5::Element::u16 : hdf5::Element::u32;
}

template <class T>
uint32_t checksum(const std::vector<T>& values) {
  return crc32c(std::as_bytes(std::span(values)));
}

const std::filesystem::path& existing(const std::filesystem::path& path) {
  std::error_code error;  // of a folder that may not be searched: opening the file reports it
  require(std::filesystem::exists(path, error) || error,
          "token file {} does not exist; make it with `switchyard tokenize`", path.string());
  require(!std::filesystem::is_directory(path, error),
          "{} is a folder, and not a token file; name the file in it", path.string());
  return path;
}

// Calls `read`, and adds the damaged file and the remedy to its errors.
template <class Read>
void or_damaged(const std::filesystem::path& path, const Read& read) {
  try {
    read();
  } catch (const CannotReadError&) {
    throw;
  } catch (const Error& error) {
    fail("token file {} is damaged: {}; {}", path.string(), error.what(), kRemedy);
  }
}

void check_mask(int64_t first, std::span<const std::byte> bytes) {
  const auto wrong = std::ranges::find_if(bytes, [](std::byte b) { return b > std::byte{1}; });
  require(wrong == bytes.end(), "the loss mask at position {} is neither 0 nor 1",
          first + (wrong - bytes.begin()));
}

}  // namespace

TokenFile::TokenFile(std::filesystem::path path) : path_(std::move(path)), bytes_(existing(path_)) {
  try {
    load_header();
  } catch (const CannotReadError&) {
    throw;
  } catch (const Error& error) {
    fail("token file {} cannot be used ({}); {}", path_.string(), error.what(), kRemedy);
  }
}

void TokenFile::read_attributes(const hdf5::File& file) {
  require(says_token_file(file), "it is not a token file");
  const int64_t version = file.get_int("version");
  require(version == kVersion || version == kVersionWithMask,
          "its format version is {}, this program reads {} and {}", version, kVersion,
          kVersionWithMask);
  const int64_t vocab_size = file.get_int("vocab_size");
  const int64_t end_of_document = file.get_int("end_of_document");
  require(vocab_size <= std::numeric_limits<int32_t>::max() && end_of_document >= 0 &&
              end_of_document < vocab_size,
          "its end-of-document token {} is outside its vocabulary of {}", end_of_document,
          vocab_size);
  info_ = {.vocab_size = vocab_size,
           .end_of_document = static_cast<int32_t>(end_of_document),
           .tokenizer = file.get_string("tokenizer"),
           .tokenizer_hash = file.get_string("tokenizer_hash"),
           .source = file.get_string("source"),
           .source_hash = file.get_string("source_hash"),
           .loss_mask = version == kVersionWithMask};
  require(info_.loss_mask == file.contains("loss_mask"),
          "its format version is {}, and it has {} loss mask", version,
          info_.loss_mask ? "no" : "a");
}

void TokenFile::load_header() {
  const auto file = hdf5::File::open(path_);
  read_attributes(file);
  token_bytes_ = bytes_per_token(info_.vocab_size);
  const int64_t chunk_tokens = file.get_int("chunk_tokens");

  const hdf5::Dataset tokens = file.dataset("tokens");
  const auto element = element_of_tokens(token_bytes_);
  require(tokens.element() == element && tokens.shape().size() == 1,
          "its tokens are not a list of {}", hdf5::to_string(element));
  tokens_.emplace(
      bytes_, "tokens", tokens, chunk_tokens, file.dataset("chunk_checksums").read_all<uint32_t>(),
      [this](int64_t first, std::span<const std::byte> bytes) { check_vocabulary(first, bytes); });

  const hdf5::Dataset offsets = file.dataset("document_offsets");
  document_offsets_ = offsets.read_all<int64_t>();
  check_offsets(static_cast<uint32_t>(offsets.get_int("crc32c")));

  if (!info_.loss_mask) return;
  const hdf5::Dataset mask = file.dataset("loss_mask");
  require(mask.element() == hdf5::Element::u8 && mask.shape() == tokens.shape(),
          "its loss mask is not a list of {} u8", num_tokens());
  loss_mask_.emplace(bytes_, "the loss mask of tokens", mask, chunk_tokens,
                     file.dataset("loss_mask_checksums").read_all<uint32_t>(), check_mask);
}

void TokenFile::check_offsets(uint32_t stored_checksum) const {
  require(checksum(document_offsets_) == stored_checksum,
          "its document offsets are damaged: checksum {:08x} instead of {:08x}",
          checksum(document_offsets_), stored_checksum);
  // Offsets strictly increase, because every document has its end-of-document token.
  require(document_offsets_.size() > 1 && document_offsets_.front() == 0 &&
              document_offsets_.back() == num_tokens() &&
              std::ranges::adjacent_find(document_offsets_, std::greater_equal<>()) ==
                  document_offsets_.end(),
          "its document offsets do not divide its {} tokens", num_tokens());
}

uint64_t TokenFile::fingerprint() const {
  return hash64(fmt::format("{} {} {:08x} {:08x}", info_.tokenizer_hash, num_tokens(),
                            checksum(document_offsets_), checksum(tokens_->checksums())));
}

uint64_t TokenFile::loss_mask_hash() const {
  return loss_mask_ ? hash64(fmt::format("{:08x}", checksum(loss_mask_->checksums()))) : 0;
}

void TokenFile::check_vocabulary(int64_t first, std::span<const std::byte> bytes) const {
  std::vector<int32_t> tokens(bytes.size() / static_cast<size_t>(token_bytes_));
  widen(bytes, tokens);
  const auto outside = std::ranges::find_if(
      tokens, [this](int32_t token) { return token < 0 || token >= info_.vocab_size; });
  if (outside == tokens.end()) return;
  fail("the token {} at position {} is outside its vocabulary of {}",
       static_cast<uint32_t>(*outside), first + (outside - tokens.begin()), info_.vocab_size);
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

void TokenFile::check_range(int64_t begin, size_t count) const {
  const int64_t end = begin + static_cast<int64_t>(count);
  require(begin >= 0 && end <= num_tokens(), "token file {}: tokens {} to {} of {} were asked for",
          path_.string(), begin, end, num_tokens());
}

void TokenFile::read(int64_t begin, std::span<int32_t> tokens) {
  check_range(begin, tokens.size());
  narrow_.resize(tokens.size() * static_cast<size_t>(token_bytes_));
  or_damaged(path_, [&] { tokens_->read(begin, narrow_); });
  widen(narrow_, tokens);
}

void TokenFile::read_loss_mask(int64_t begin, std::span<uint8_t> mask) {
  require(loss_mask_.has_value(), "token file {} has no loss mask", path_.string());
  check_range(begin, mask.size());
  or_damaged(path_, [&] { loss_mask_->read(begin, std::as_writable_bytes(mask)); });
}

void TokenFile::verify() {
  or_damaged(path_, [&] {
    tokens_->verify();
    if (loss_mask_) loss_mask_->verify();
  });
}

bool says_token_file(const hdf5::File& file) {
  return file.has_string("format") && file.get_string("format") == kFormat;
}

bool is_token_file(const std::filesystem::path& path) {
  return says_token_file(hdf5::File::open(path));
}

void require_tokenizer(const TokenFile& file, const Tokenizer& tokenizer) {
  require(file.info().tokenizer_hash == tokenizer.hash(),
          "token file {} was made with the {} tokenizer {}, data.tokenizer is the {} tokenizer {}; "
          "{}",
          file.path().string(), file.info().tokenizer, file.info().tokenizer_hash,
          to_string(tokenizer.type()), tokenizer.hash(), kRemedy);
  // Without a mask every token of the haystack would count as a target.
  require(tokenizer.type() != TokenizerType::recall || file.info().loss_mask,
          "token file {} does not say which tokens are answers: an earlier version made it; {}",
          file.path().string(), kRemedy);
}

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, TokenFileInfo info)
    : unfinished_(path),
      info_(std::move(info)),
      token_bytes_(bytes_per_token(info_.vocab_size)),
      tokens_(target_of(path).string() + ".spool.tmp", token_bytes_, kChunkTokens) {
  require(info_.end_of_document >= 0 && info_.end_of_document < info_.vocab_size,
          "the end-of-document token {} is outside the vocabulary of {}", info_.end_of_document,
          info_.vocab_size);
  if (info_.loss_mask) loss_mask_.emplace(target_of(path).string() + ".mask.tmp", 1, kChunkTokens);
}

void TokenFileWriter::append_document(std::span<const int32_t> tokens,
                                      std::span<const uint8_t> loss_mask) {
  require(loss_mask.size() == (info_.loss_mask ? tokens.size() + 1 : 0),
          "the loss mask has {} values for a document of {} tokens and its end", loss_mask.size(),
          tokens.size());
  append_tokens(tokens);
  for (const uint8_t& counts : loss_mask) {
    require(counts <= 1, "a loss mask holds 0 and 1, not {}", counts);
    loss_mask_->append(std::as_bytes(std::span(&counts, 1)));
  }
  end_document();
}

void TokenFileWriter::append_tokens(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) append_token(token);
  open_tokens_ += std::ssize(tokens);
}

void TokenFileWriter::end_document() {
  append_token(info_.end_of_document);
  document_offsets_.push_back(num_tokens() + std::exchange(open_tokens_, 0) + 1);
}

void TokenFileWriter::append_token(int32_t token) {
  require(token >= 0 && token < info_.vocab_size, "the token {} is outside the vocabulary of {}",
          token, info_.vocab_size);
  // Little-endian, so the low bytes come first.
  tokens_.append(std::as_bytes(std::span(&token, 1)).first(static_cast<size_t>(token_bytes_)));
}

void TokenFileWriter::finish() {
  require(num_documents() > 0, "token file {} would have no document", unfinished_.path().string());
  write_file();
  unfinished_.publish();
}

void TokenFileWriter::write_attributes(hdf5::File& file) const {
  file.set_string("format", kFormat);
  file.set_int("version", info_.loss_mask ? kVersionWithMask : kVersion);
  file.set_int("vocab_size", info_.vocab_size);
  file.set_int("end_of_document", info_.end_of_document);
  file.set_string("tokenizer", info_.tokenizer);
  file.set_string("tokenizer_hash", info_.tokenizer_hash);
  file.set_string("source", info_.source);
  file.set_string("source_hash", info_.source_hash);
  file.set_int("chunk_tokens", kChunkTokens);
}

void TokenFileWriter::write_file() {
  auto file = hdf5::File::create(unfinished_.path());
  write_attributes(file);
  const auto write_checksums = [&](const char* name, const std::vector<uint32_t>& checksums) {
    file.create_dataset(name, hdf5::Element::u32, {std::ssize(checksums)})
        .write<uint32_t>(checksums);
  };
  hdf5::Dataset tokens =
      file.create_dataset("tokens", element_of_tokens(token_bytes_), {num_tokens()});
  tokens_.move_to(tokens);
  hdf5::Dataset offsets =
      file.create_dataset("document_offsets", hdf5::Element::i64, {std::ssize(document_offsets_)});
  offsets.write<int64_t>(document_offsets_);
  offsets.set_int("crc32c", checksum(document_offsets_));
  write_checksums("chunk_checksums", tokens_.checksums());
  if (loss_mask_) {
    hdf5::Dataset mask = file.create_dataset("loss_mask", hdf5::Element::u8, {num_tokens()});
    loss_mask_->move_to(mask);
    write_checksums("loss_mask_checksums", loss_mask_->checksums());
  }
  file.close();
}

}  // namespace switchyard
