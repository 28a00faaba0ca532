#include "trainer/data/text_file.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kBlockBytes = 1 << 18;

// zlib reads files without gzip's magic number unchanged.
class GzipStream : public ByteStream {
 public:
  GzipStream(const fs::path& path, bool is_compressed) : path_(path), compressed_(is_compressed) {
    file_ = gzopen(path.c_str(), "rbe");
    require(file_ != nullptr, "cannot open {}: {}", path.string(), std::strerror(errno));
    gzbuffer(file_, kBlockBytes);
  }
  ~GzipStream() override { gzclose(file_); }
  GzipStream(const GzipStream&) = delete;
  GzipStream& operator=(const GzipStream&) = delete;

  size_t read(std::span<char> bytes) override {
    const int count = gzread(file_, bytes.data(), static_cast<unsigned>(bytes.size()));
    require(!compressed_ || count <= 0 || gzdirect(file_) == 0, "{} is not compressed by gzip",
            path_.string());
    // zlib returns the readable part of a damaged file before it reports the damage.
    int status = Z_OK;
    const char* reason = gzerror(file_, &status);
    require(status == Z_OK || status == Z_STREAM_END, "cannot read {}: {}", path_.string(),
            status == Z_ERRNO ? std::strerror(errno) : reason);
    return static_cast<size_t>(std::max(count, 0));
  }

 private:
  fs::path path_;
  bool compressed_;
  gzFile file_;
};

// One frame after the other, as `zstd` and `cat` write them. The library takes at most 128 MiB for
// a frame, and reports any that would need more.
class ZstdStream : public ByteStream {
 public:
  explicit ZstdStream(const fs::path& path)
      : path_(path), file_(path), size_(file_.size()), buffer_(kBlockBytes) {
    require(context_ != nullptr, "cannot read {}: there is no memory to decompress it",
            path.string());
  }

  size_t read(std::span<char> bytes) override {
    ZSTD_outBuffer out{bytes.data(), bytes.size(), 0};
    while (out.pos == 0) {
      if (in_.pos == in_.size) refill();
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
  void refill() {
    const auto count = std::min<int64_t>(std::ssize(buffer_), size_ - offset_);
    const std::span<std::byte> bytes(buffer_.data(), static_cast<size_t>(count));
    file_.read(offset_, bytes);
    offset_ += count;
    in_ = {bytes.data(), bytes.size(), 0};
  }

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
  InputFile file_;
  int64_t size_, offset_ = 0;
  std::vector<std::byte> buffer_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  std::unique_ptr<ZSTD_DCtx, FreeContext> context_{ZSTD_createDCtx()};
  bool in_frame_ = false;
};

std::unique_ptr<ByteStream> open_stream(const fs::path& path) {
  if (path.extension() == ".zst") return std::make_unique<ZstdStream>(path);
  return std::make_unique<GzipStream>(path, path.extension() == ".gz");
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
