#include "trainer/inference/far_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"
#include "trainer/files/transfer.h"

namespace switchyard {

namespace fs = std::filesystem;

namespace {

// Enough to keep an NVMe disk busy with small requests.
constexpr int kReaders = 32;
constexpr size_t kBufferBytes = size_t{512} << 10;
// Direct requests begin and end at multiples of this.
constexpr int64_t kBlock = TaskThreads::kAlignment;
constexpr int64_t kPageRows = 64;
// Rows that are no further apart are read in one request: reading what lies between them takes no
// longer than another request would (about 60,000 requests or 1 GB per second).
constexpr int64_t kMergeBytes = 16 << 10;

// A request to the file, and the rows that it brings.
struct Extent {
  int64_t head;          // b * kv_heads + h
  int64_t begin, end;    // bytes of the file
  int64_t first, count;  // entries of the list of positions, or positions
};

}  // namespace

class FarFileLayer final : public FarLayer {
 public:
  FarFileLayer(FarFile& file, const Shape& shape, DType dtype)
      : file_(file),
        heads_(shape[0] * shape[1]),
        row_bytes_(shape[3] * static_cast<int64_t>(size_of(dtype))),
        page_bytes_(round_up(kPageRows * 2 * row_bytes_, kBlock)),
        num_pages_(ceil_div(shape[2], kPageRows)),
        begin_(file.size_),
        tails_(static_cast<size_t>(heads_ * page_bytes_)) {
    require(page_bytes_ <= static_cast<int64_t>(kBufferBytes),
            "heads of {} values are too wide for a cache in a file; use decode.offload=memory",
            shape[3]);
  }
  ~FarFileLayer() override {
    try {
      file_.threads_.wait(job_);
    } catch (...) {  // NOLINT: whoever needed the rows has been told, or nobody does.
    }
  }

  int64_t num_bytes() const { return heads_ * num_pages_ * page_bytes_; }

  void write(Stream&, ConstTensorView k, ConstTensorView v, int64_t first_position) override {
    require(first_position == length_, "rows from {} on do not follow the {} that are there",
            first_position, length_);
    const int64_t end = first_position + k.dim(2);
    const int64_t first_page = first_position / kPageRows, pages = end / kPageRows - first_page;
    TaskThreads::Job job;
    file_.threads_.begin(job, heads_ * pages, [&](int64_t task, std::span<std::byte> buffer) {
      const int64_t head = task / pages, page = first_page + task % pages;
      std::memcpy(buffer.data(), tail(head), static_cast<size_t>(page_bytes_));
      put_rows(k, v, head, first_position, page, buffer.data());
      const auto bytes = buffer.first(static_cast<size_t>(page_bytes_));
      const int error = write_fully(file_.descriptor_, offset_of_page(head, page), bytes);
      require(error == 0, "cannot write the keys and values of decode.offload=file to {}: {}",
              file_.folder_.string(), std::strerror(error));
    });
    file_.threads_.wait(job);
    length_ = end;
    for (int64_t head = 0; head < heads_; ++head) {
      put_rows(k, v, head, first_position, end / kPageRows, tail(head));
    }
  }

  void begin(Stream&, const RowRequest& request) override {
    plan(request);
    file_.threads_.begin(
        job_, std::ssize(extents_),
        [this, request](int64_t task, std::span<std::byte> buffer) {
          read(request, extents_[static_cast<size_t>(task)], buffer);
        },
        request.is_urgent);
  }
  void wait(Stream&) override { file_.threads_.wait(job_); }

 private:
  int64_t offset_of_page(int64_t head, int64_t page) const {
    return begin_ + (head * num_pages_ + page) * page_bytes_;
  }
  int64_t offset_of(int64_t head, int64_t position) const {
    return offset_of_page(head, position / kPageRows) + position % kPageRows * 2 * row_bytes_;
  }
  // The last page of a head, as it will be in the file.
  std::byte* tail(int64_t head) {
    return static_cast<std::byte*>(tails_.data()) + head * page_bytes_;
  }

  static const std::byte* row_of(ConstTensorView x, int64_t head, int64_t row, int64_t bytes) {
    return static_cast<const std::byte*>(x.raw()) + (head * x.dim(2) + row) * bytes;
  }
  static std::byte* row_of(TensorView x, int64_t head, int64_t row, int64_t bytes) {
    return static_cast<std::byte*>(x.raw()) + (head * x.dim(2) + row) * bytes;
  }

  // Puts the new rows that belong to a page into its place in memory.
  void put_rows(ConstTensorView k, ConstTensorView v, int64_t head, int64_t first_position,
                int64_t page, std::byte* to) const {
    const int64_t begin = std::max(first_position, page * kPageRows);
    const int64_t end = std::min(first_position + k.dim(2), (page + 1) * kPageRows);
    const auto bytes = static_cast<size_t>(row_bytes_);
    for (int64_t p = begin; p < end; ++p) {
      std::byte* row = to + p % kPageRows * 2 * row_bytes_;
      std::memcpy(row, row_of(k, head, p - first_position, row_bytes_), bytes);
      std::memcpy(row + bytes, row_of(v, head, p - first_position, row_bytes_), bytes);
    }
  }

  // Copies a position from `row`, where its K and V lie side by side.
  void take_row(const RowRequest& r, int64_t head, int64_t slot, const std::byte* row) const {
    const auto bytes = static_cast<size_t>(row_bytes_);
    std::memcpy(row_of(r.k, head, slot, row_bytes_), row, bytes);
    std::memcpy(row_of(r.v, head, slot, row_bytes_), row + bytes, bytes);
  }

  // The range of entries of a request, the position of an entry, and its slot.
  static std::pair<int64_t, int64_t> entries(const RowRequest& r) {
    return r.positions ? std::pair{int64_t{0}, r.positions.dim(2)}
                       : std::pair{r.first_position, r.length};
  }
  static int64_t position_of(const RowRequest& r, int64_t head, int64_t entry) {
    return r.positions ? r.positions.data<int32_t>()[head * r.positions.dim(2) + entry] : entry;
  }
  static int64_t slot_of(const RowRequest& r, int64_t entry) {
    return r.positions ? r.first_slot + entry : entry;
  }

  // Takes what is in memory at once, and plans how to read the rest.
  void plan(const RowRequest& r) {
    extents_.clear();
    in_file_ = length_ / kPageRows * kPageRows;
    const auto [first, end] = entries(r);
    for (int64_t head = 0; head < heads_; ++head) {
      for (int64_t entry = first; entry < end; ++entry) {
        const int64_t position = position_of(r, head, entry);
        if (position < 0 || position >= r.length) continue;
        if (position < in_file_) {
          add_to_extents(head, entry, offset_of(head, position));
        } else {
          take_row(r, head, slot_of(r, entry), tail(head) + position % kPageRows * 2 * row_bytes_);
        }
      }
    }
  }

  void add_to_extents(int64_t head, int64_t entry, int64_t offset) {
    const int64_t begin = offset / kBlock * kBlock;
    const int64_t end = round_up(offset + 2 * row_bytes_, kBlock);
    if (!extents_.empty()) {
      Extent& last = extents_.back();
      // Positions of a request may stand in any order.
      if (last.head == head && last.begin <= begin && begin <= last.end + kMergeBytes &&
          end - last.begin <= static_cast<int64_t>(kBufferBytes)) {
        last.end = std::max(last.end, end);
        last.count = entry + 1 - last.first;
        return;
      }
    }
    extents_.push_back({.head = head, .begin = begin, .end = end, .first = entry, .count = 1});
  }

  void read(const RowRequest& r, const Extent& extent, std::span<std::byte> buffer) const {
    const auto bytes = buffer.first(static_cast<size_t>(extent.end - extent.begin));
    const ReadResult result = read_fully(file_.descriptor_, extent.begin, bytes);
    require(result.error == 0 && result.bytes == bytes.size(),
            "cannot read the keys and values of decode.offload=file from {}: {}",
            file_.folder_.string(), std::strerror(result.error));
    for (int64_t i = extent.first; i < extent.first + extent.count; ++i) {
      const int64_t position = position_of(r, extent.head, i);
      if (position < 0 || position >= in_file_) continue;
      take_row(r, extent.head, slot_of(r, i),
               bytes.data() + (offset_of(extent.head, position) - extent.begin));
    }
  }

  FarFile& file_;
  int64_t heads_, row_bytes_, page_bytes_, num_pages_, begin_;
  int64_t length_ = 0;   // rows that were written
  int64_t in_file_ = 0;  // of them, as of the last request
  Buffer tails_;         // [heads, page_bytes]
  std::vector<Extent> extents_;
  TaskThreads::Job job_;
};

FarFile::FarFile(const fs::path& folder) : folder_(folder), threads_(kReaders, kBufferBytes) {
  std::error_code ignored;  // Making the file says what is wrong.
  fs::create_directories(folder, ignored);
  std::string name = (folder / "offload.XXXXXX").string();
  descriptor_ = ::mkostemp(name.data(), O_CLOEXEC);
  require(descriptor_ >= 0, "cannot make a file for decode.offload=file in {} (run.dir): {}",
          folder.string(), std::strerror(errno));
  ::unlink(name.c_str());
  is_direct_ = ::fcntl(descriptor_, F_SETFL, O_DIRECT) == 0;
}

FarFile::~FarFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::unique_ptr<FarLayer> FarFile::add_layer(const Shape& shape, DType dtype) {
  auto layer = std::make_unique<FarFileLayer>(*this, shape, dtype);
  const int error = ::posix_fallocate(descriptor_, size_, layer->num_bytes());
  require(error == 0,
          "the keys and values of decode.offload=file do not fit into {} (run.dir), {} more bytes: "
          "{}",
          folder_.string(), layer->num_bytes(), std::strerror(error));
  size_ += layer->num_bytes();
  return layer;
}

std::shared_ptr<FarMemory> make_far_memory(const RunConfig& config, Device device) {
  if (config.decode.offload == Offload::none) return nullptr;
  if (config.decode.offload == Offload::memory) return make_host_memory(device);
  require(device.kind == DeviceKind::cpu,
          "decode.offload=file holds caches of the CPU, not of {}; use decode.offload=memory",
          to_string(device));
  return std::make_shared<FarFile>(config.run.dir);
}

}  // namespace switchyard
