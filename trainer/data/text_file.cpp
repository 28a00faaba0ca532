#include "trainer/data/text_file.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBlockBytes = 1 << 18;

// The bytes of a file as they are.
class PlainStream : public ByteStream {
 public:
  explicit PlainStream(const fs::path& path) : file_(path), size_(file_.size()) {}

  size_t read(std::span<char> bytes) override {
    const auto count = std::min<int64_t>(std::ssize(bytes), size_ - offset_);
    file_.read(offset_, std::as_writable_bytes(bytes.first(static_cast<size_t>(count))));
    offset_ += count;
    return static_cast<size_t>(count);
  }

  // Of the next byte.
  int64_t offset() const { return offset_; }

 private:
  InputFile file_;
  int64_t size_, offset_ = 0;
};

// One member after the other, as `gzip` and `cat` write them. (zlib's gzread ignores all bytes
// from the first member with a damaged header on.)
class GzipStream : public ByteStream {
 public:
  explicit GzipStream(const fs::path& path) : path_(path), file_(path), buffer_(kBlockBytes) {
    constexpr int kGzip = 16;  // and no other format
    require(inflateInit2(&state_, MAX_WBITS + kGzip) == Z_OK,
            "cannot read {}: there is no memory to decompress it", path.string());
  }
  ~GzipStream() override { inflateEnd(&state_); }
  GzipStream(const GzipStream&) = delete;
  GzipStream& operator=(const GzipStream&) = delete;

  size_t read(std::span<char> bytes) override {
    state_.next_out = reinterpret_cast<Bytef*>(bytes.data());
    state_.avail_out = static_cast<uInt>(bytes.size());
    while (state_.avail_out == bytes.size()) {
      if (!in_member_ && !begin_member()) return 0;
      const bool at_end = !has_input();
      const int status = inflate(&state_, Z_NO_FLUSH);
      in_member_ = status != Z_STREAM_END;
      require(!in_member_ || status == Z_OK || status == Z_BUF_ERROR,
              "cannot read {}: the gzip member from byte {} on is damaged: {}", path_.string(),
              member_, state_.msg ? state_.msg : zError(status));
      require(!at_end || !in_member_ || state_.avail_out < bytes.size(),
              "cannot read {}: it ends within its compressed data, the gzip member from byte {} on",
              path_.string(), member_);
    }
    return bytes.size() - state_.avail_out;
  }

 private:
  // False at the end of the file. After a member, zeros may lead there, as blocks of tapes do.
  bool begin_member() {
    constexpr Bytef kFirstByte = 0x1f;
    const int64_t end = position();
    while (end > 0 && has_input() && *state_.next_in == 0) {
      ++state_.next_in;
      --state_.avail_in;
    }
    if (!has_input()) return false;
    member_ = position();
    const bool begins = *state_.next_in == kFirstByte && member_ == end;
    require(begins || end > 0, "{} is not compressed by gzip", path_.string());
    require(begins,
            "cannot read {}: the bytes from byte {} on are no gzip member: the file is damaged, or "
            "has other bytes behind its compressed data",
            path_.string(), end);
    inflateReset(&state_);
    return true;
  }

  // False at the end of the file.
  bool has_input() {
    if (state_.avail_in == 0) {
      state_.next_in = reinterpret_cast<Bytef*>(buffer_.data());
      state_.avail_in = static_cast<uInt>(file_.read(buffer_));
    }
    return state_.avail_in > 0;
  }

  // Of the next byte that zlib has not taken.
  int64_t position() const { return file_.offset() - state_.avail_in; }

  fs::path path_;
  PlainStream file_;
  std::vector<char> buffer_;
  z_stream state_{};
  bool in_member_ = false;
  int64_t member_ = 0;  // its first byte
};

// One frame after the other, as `zstd` and `cat` write them. The library takes at most 128 MiB for
// a frame, and reports any that would need more.
class ZstdStream : public ByteStream {
 public:
  explicit ZstdStream(const fs::path& path) : path_(path), file_(path), buffer_(kBlockBytes) {
    require(context_ != nullptr, "cannot read {}: there is no memory to decompress it",
            path.string());
  }

  size_t read(std::span<char> bytes) override {
    ZSTD_outBuffer out{bytes.data(), bytes.size(), 0};
    while (out.pos == 0) {
      if (in_.pos == in_.size) in_ = {buffer_.data(), file_.read(buffer_), 0};
      const bool at_end = in_.pos == in_.size;
      if (at_end && !in_frame_) return 0;
      const size_t wanted = ZSTD_decompressStream(context_.get(), &out, &in_);
      if (ZSTD_isError(wanted)) refuse(wanted);
      in_frame_ = wanted != 0;
      require(!at_end || !in_frame_ || out.pos > 0,
              "cannot read {}: it ends within its compressed data", path_.string());
    }
    return out.pos;
  }

 private:
  [[noreturn]] void refuse(size_t error) const {
    if (ZSTD_getErrorCode(error) == ZSTD_error_prefix_unknown) {
      fail("{} is not compressed by zstd, or has other bytes behind its compressed data",
           path_.string());
    }
    fail("cannot read {}: {}", path_.string(), ZSTD_getErrorName(error));
  }

  struct FreeContext {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };

  fs::path path_;
  PlainStream file_;
  std::vector<char> buffer_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  std::unique_ptr<ZSTD_DCtx, FreeContext> context_{ZSTD_createDCtx()};
  bool in_frame_ = false;
};

std::unique_ptr<ByteStream> open_stream(const fs::path& path) {
  if (path.extension() == ".zst") return std::make_unique<ZstdStream>(path);
  if (path.extension() == ".gz") return std::make_unique<GzipStream>(path);
  return std::make_unique<PlainStream>(path);
}

}  // namespace

TextFile::TextFile(fs::path path) : path_(std::move(path)), stream_(open_stream(path_)) {}

bool TextFile::refill() {
  begin_ = 0;
  block_.resize(kBlockBytes);
  block_.resize(stream_->read(block_));
  return !block_.empty();
}

std::string TextFile::read_all() {
  std::string text;
  while (refill()) text += block_;
  return text;
}

std::optional<TextFile::Line> TextFile::next_line() {
  if (begin_ == block_.size() && !refill()) return std::nullopt;
  ++line_number_;
  Line line;
  do {
    const size_t end = std::min(block_.find('\n', begin_), block_.size());
    const size_t count = end - begin_;
    line.is_too_long = line.is_too_long || line.text.size() + count > kLongestLine;
    if (line.is_too_long) {
      line.text.clear();
    } else {
      line.text.append(block_, begin_, count);
    }
    begin_ = std::min(end + 1, block_.size());
    if (end < block_.size()) break;
  } while (refill());
  return line;
}

std::string text_extension(const fs::path& path) {
  const bool is_compressed = path.extension() == ".gz" || path.extension() == ".zst";
  return (is_compressed ? path.stem() : path).extension().string();
}

}  // namespace switchyard
