#include "trainer/data/token_file.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"
#include "kernels/crc32c.h"

namespace switchyard {
namespace {

constexpr int64_t kFormatVersion = 1;
constexpr int64_t kChunkTokens = int64_t{1} << 18;

std::filesystem::path partial_name(const std::filesystem::path& path) {
  return path.string() + ".tmp";
}

// Tokens as they lie in the file: u16 where the vocabulary allows it.
DType stored_dtype(int64_t vocab_size) { return vocab_size <= 65536 ? DType::u16 : DType::i32; }

uint32_t checksum_of(ConstTensorView tokens) {
  return crc32c({static_cast<const std::byte*>(tokens.raw()), tokens.num_bytes()});
}

constexpr const char* kRemedy = "make it again with `switchyard tokenize`";

}  // namespace

TokenFileWriter::TokenFileWriter(std::filesystem::path path, const TokenFileInfo& info)
    : path_(std::move(path)),
      info_(info),
      dtype_(stored_dtype(info.vocab_size)),
      file_(Hdf5File::create(partial_name(path_))) {
  file_.create_dataset("tokens", dtype_, kChunkTokens);
}

void TokenFileWriter::append(const std::vector<int32_t>& document) {
  pending_.insert(pending_.end(), document.begin(), document.end());
  pending_.push_back(info_.end_of_document);
  document_offsets_.push_back(document_offsets_.back() + static_cast<int64_t>(document.size()) + 1);
  while (pending_.size() >= kChunkTokens) write_chunk(kChunkTokens);
}

void TokenFileWriter::write_chunk(size_t count) {
  Tensor chunk({static_cast<int64_t>(count)}, dtype_);
  for (size_t i = 0; i < count; ++i) {
    const int32_t token = pending_[i];
    require(token >= 0 && token < info_.vocab_size, "token {} is outside the vocabulary of {}",
            token, info_.vocab_size);
    if (dtype_ == DType::u16) {
      chunk.data<uint16_t>()[i] = static_cast<uint16_t>(token);
    } else {
      chunk.data<int32_t>()[i] = token;
    }
  }
  checksums_.push_back(checksum_of(chunk));
  file_.append("tokens", chunk);
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
}

void TokenFileWriter::finish() {
  if (!pending_.empty()) write_chunk(pending_.size());
  const auto view = [](const std::vector<int64_t>& values) {
    return view_of(std::span<const int64_t>(values));
  };
  file_.write_dataset("document_offsets", view(document_offsets_));
  file_.write_dataset("token_checksums", view(checksums_));
  const std::vector<int64_t> offsets_checksum = {checksum_of(view(document_offsets_))};
  file_.write_dataset("document_offsets_checksum", view(offsets_checksum));
  file_.write_attribute("format", std::string("switchyard tokens"));
  file_.write_attribute("version", kFormatVersion);
  file_.write_attribute("vocab_size", info_.vocab_size);
  file_.write_attribute("end_of_document", static_cast<int64_t>(info_.end_of_document));
  file_.write_attribute("chunk_tokens", kChunkTokens);
  file_.write_attribute("tokenizer", info_.tokenizer);
  file_.write_attribute("source", info_.source);
  file_.close();
  std::filesystem::rename(partial_name(path_), path_);
}

TokenFile::TokenFile(const std::filesystem::path& path) : file_(Hdf5File::open(path)) {
  const std::string name = path.string();
  require(file_.text_attribute("format") == "switchyard tokens", "{} is not a token file", name);
  const int64_t version = file_.integer_attribute("version");
  require(version == kFormatVersion, "{} has format version {}, this program reads {}; {}", name,
          version, kFormatVersion, kRemedy);
  info_ = {.vocab_size = file_.integer_attribute("vocab_size"),
           .end_of_document = static_cast<int32_t>(file_.integer_attribute("end_of_document")),
           .tokenizer = file_.text_attribute("tokenizer"),
           .source = file_.text_attribute("source")};
  require(file_.integer_attribute("chunk_tokens") == kChunkTokens && info_.vocab_size > 0,
          "{} has attributes that cannot be; {}", name, kRemedy);
  dtype_ = stored_dtype(info_.vocab_size);
  num_tokens_ = file_.size("tokens");

  document_offsets_.resize(static_cast<size_t>(file_.size("document_offsets")));
  checksums_.resize(static_cast<size_t>(file_.size("token_checksums")));
  int64_t offsets_checksum = 0;
  file_.read("document_offsets", 0, view_of(std::span(document_offsets_)));
  file_.read("token_checksums", 0, view_of(std::span(checksums_)));
  file_.read("document_offsets_checksum", 0, view_of(std::span(&offsets_checksum, 1)));
  const ConstTensorView offsets = view_of(std::span<const int64_t>(document_offsets_));
  require(offsets_checksum == checksum_of(offsets), "{}: the document offsets are damaged; {}",
          name, kRemedy);
  const auto chunks = static_cast<size_t>((num_tokens_ + kChunkTokens - 1) / kChunkTokens);
  require(!document_offsets_.empty() && document_offsets_.back() == num_tokens_ &&
              checksums_.size() == chunks,
          "{}: {} tokens, but offsets and checksums for another number; {}", name, num_tokens_,
          kRemedy);
  verified_.resize(chunks, false);
  fingerprint_ = checksum_of(view_of(std::span<const int64_t>(checksums_))) +
                 (static_cast<uint64_t>(num_tokens_) << 32);
}

int64_t TokenFile::document_begin(int64_t token) const {
  const auto after = std::upper_bound(document_offsets_.begin(), document_offsets_.end(), token);
  return *(after - 1);
}

void TokenFile::read(int64_t begin, TensorView tokens) const {
  const int64_t end = begin + tokens.num_elements();
  require(begin >= 0 && end <= num_tokens_, "{}: tokens [{}, {}) of {}", file_.path().string(),
          begin, end, num_tokens_);
  for (int64_t chunk = begin / kChunkTokens; chunk * kChunkTokens < end; ++chunk) {
    if (!verified_[static_cast<size_t>(chunk)]) verify_chunk(chunk);
  }
  file_.read("tokens", begin, tokens);
}

void TokenFile::verify() const {
  for (size_t chunk = 0; chunk < checksums_.size(); ++chunk) {
    verify_chunk(static_cast<int64_t>(chunk));
  }
}

void TokenFile::verify_chunk(int64_t chunk) const {
  const int64_t begin = chunk * kChunkTokens;
  Tensor stored({std::min(kChunkTokens, num_tokens_ - begin)}, dtype_);
  file_.read("tokens", begin, stored);
  require(checksum_of(stored) == checksums_[static_cast<size_t>(chunk)],
          "{}: tokens {} to {} are damaged (checksum); {}", file_.path().string(), begin,
          begin + stored.num_elements() - 1, kRemedy);
  for (int64_t i = 0; i < stored.num_elements(); ++i) {
    const int64_t token =
        dtype_ == DType::u16 ? stored.data<uint16_t>()[i] : stored.data<int32_t>()[i];
    require(token >= 0 && token < info_.vocab_size,
            "{}: token {} at position {} is outside the vocabulary of {}; {}",
            file_.path().string(), token, begin + i, info_.vocab_size, kRemedy);
  }
  verified_[static_cast<size_t>(chunk)] = true;
}

}  // namespace switchyard
