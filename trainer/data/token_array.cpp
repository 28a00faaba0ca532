#include "trainer/data/token_array.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr int64_t kHeaderBytes = 9 + 8 + 1 + 8 + 8;
constexpr int64_t kBlockIds = 1 << 16;

int64_t bytes_of(IdType type) {
  switch (type) {
    case IdType::u8:
    case IdType::i8:
      return 1;
    case IdType::i16:
    case IdType::u16:
      return 2;
    case IdType::i32:
    case IdType::u32:
      return 4;
    case IdType::i64:
      break;
  }
  return 8;
}

// Megatron's codes of NumPy's types.
IdType type_of_code(uint8_t code) {
  constexpr IdType kTypes[] = {IdType::u8, IdType::i8, IdType::i16, IdType::i32, IdType::i64};
  if (code >= 1 && code <= 5) return kTypes[code - 1];
  require(code != 6 && code != 7, "it says that its elements are floating-point numbers (type {})",
          code);
  require(code == 8, "its type {} is unknown", code);
  return IdType::u16;
}

template <class T>
T load(std::span<const std::byte> bytes, int64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

int64_t load_id(IdType type, std::span<const std::byte> bytes, int64_t i) {
  switch (type) {
    case IdType::u8:
      return load<uint8_t>(bytes, i);
    case IdType::i8:
      return load<int8_t>(bytes, i);
    case IdType::i16:
      return load<int16_t>(bytes, 2 * i);
    case IdType::i32:
      return load<int32_t>(bytes, 4 * i);
    case IdType::i64:
      return load<int64_t>(bytes, 8 * i);
    case IdType::u16:
      return load<uint16_t>(bytes, 2 * i);
    case IdType::u32:
      break;
  }
  return load<uint32_t>(bytes, 4 * i);
}

template <class T>
std::vector<T> read_list(const InputFile& file, int64_t& offset, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  file.read(offset, std::as_writable_bytes(std::span(values)));
  offset += count * static_cast<int64_t>(sizeof(T));
  return values;
}

}  // namespace

fs::path TokenArray::index_of(fs::path path) { return path.replace_extension(".idx"); }

TokenArray::TokenArray(fs::path path, ArrayDType dtype, int64_t vocab_size, int32_t end_of_document)
    : path_(std::move(path)),
      file_(path_),
      vocab_size_(vocab_size),
      end_of_document_(end_of_document),
      is_indexed_(fs::exists(index_of(path_))) {
  const std::string index = index_of(path_).string();
  if (is_indexed_) {
    require(dtype == ArrayDType::none,
            "{} says what the ids in {} are: take data.array_dtype out, or the index if it belongs "
            "to other ids",
            index, path_.string());
    try {
      read_index();
    } catch (const CannotReadError&) {
      throw;
    } catch (const Error& error) {
      fail("the index {} of {} cannot be used: {}; copy or make both again", index, path_.string(),
           error.what());
    }
    return;
  }
  require(dtype != ArrayDType::none,
          "{} does not say what its numbers are: set data.array_dtype to u16 or u32, or put "
          "Megatron's index {} beside it",
          path_.string(), index);
  type_ = dtype == ArrayDType::u16 ? IdType::u16 : IdType::u32;
  require(file_.size() % bytes_of(type_) == 0,
          "{} has {} bytes, which are no whole number of {}; it is cut off, or data.array_dtype is "
          "not that of its ids",
          path_.string(), file_.size(), to_string(dtype));
  size_ = file_.size() / bytes_of(type_);
}

void TokenArray::read_index() {
  const InputFile file(index_of(path_));
  std::vector<std::byte> header(kHeaderBytes);
  file.read(0, header);
  require(std::memcmp(header.data(), kMagic.data(), kMagic.size()) == 0,
          "it does not begin with MMIDIDX");
  const auto version = load<uint64_t>(header, 9);
  require(version == 1, "its version is {}, this program reads 1", version);
  type_ = type_of_code(load<uint8_t>(header, 17));
  // The lists are as long as the file says, which is checked before any memory is taken for them.
  const auto sequences = load<uint64_t>(header, 18), documents = load<uint64_t>(header, 26);
  const auto room = static_cast<uint64_t>(file.size() - kHeaderBytes);
  require(sequences <= room / 12 && documents <= room / 8,
          "it has no room for its {} sequences and {} documents", sequences, documents);
  const uint64_t lists = 12 * sequences + 8 * documents;
  require(room == lists || room == lists + sequences,
          "{} sequences and {} documents take {} bytes behind its header, and it has {}", sequences,
          documents, lists, room);
  int64_t offset = kHeaderBytes;
  lengths_ = read_list<int32_t>(file, offset, static_cast<int64_t>(sequences));
  first_bytes_ = read_list<int64_t>(file, offset, static_cast<int64_t>(sequences));
  documents_ = read_list<int64_t>(file, offset, static_cast<int64_t>(documents));
  check_sequences();
}

void TokenArray::check_sequences() const {
  const int64_t bytes = file_.size(), each = bytes_of(type_);
  for (size_t i = 0; i < lengths_.size(); ++i) {
    require(
        lengths_[i] >= 0 && first_bytes_[i] >= 0 && lengths_[i] * each <= bytes - first_bytes_[i],
        "sequence {} has {} ids of {} bytes from byte {} on, and the file has {} bytes", i,
        lengths_[i], each, first_bytes_[i], bytes);
    require(first_bytes_[i] % each == 0, "sequence {} begins at byte {}, within an id of {} bytes",
            i, first_bytes_[i], each);
  }
  require(documents_.size() > 1 && documents_.front() == 0 &&
              documents_.back() == std::ssize(lengths_) && std::ranges::is_sorted(documents_),
          "its documents do not divide its {} sequences", lengths_.size());
}

std::optional<std::vector<TokenArray::Range>> TokenArray::next_document() {
  if (is_indexed_) {
    if (next_document_ + 1 == documents_.size()) return std::nullopt;
    return indexed_document();
  }
  if (next_begin_ == size_) return std::nullopt;
  return std::vector<Range>{delimited_document()};
}

// Sequences that follow each other in the file become one range.
std::vector<TokenArray::Range> TokenArray::indexed_document() {
  std::vector<Range> ranges;
  const auto end = static_cast<size_t>(documents_[next_document_ + 1]);
  for (auto i = static_cast<size_t>(documents_[next_document_]); i < end; ++i) {
    const int64_t begin = first_bytes_[i] / bytes_of(type_);
    if (lengths_[i] == 0) continue;
    if (ranges.empty() || ranges.back().end != begin) ranges.push_back({begin, begin});
    ranges.back().end += lengths_[i];
  }
  ++next_document_;
  if (ranges.empty()) return ranges;
  int32_t last = 0;
  read(ranges.back().end - 1, std::span(&last, 1));
  if (last == end_of_document_) --ranges.back().end;
  return ranges;
}

TokenArray::Range TokenArray::delimited_document() {
  const int64_t begin = next_begin_;
  for (int64_t at = begin; at < size_; at = block_begin_ + std::ssize(block_)) {
    if (at >= block_begin_ + std::ssize(block_)) {
      block_begin_ = at;
      block_.resize(static_cast<size_t>(std::min(kBlockIds, size_ - at)));
      read(at, block_);
    }
    const auto end =
        std::find(block_.begin() + (at - block_begin_), block_.end(), end_of_document_);
    if (end == block_.end()) continue;
    const int64_t position = block_begin_ + (end - block_.begin());
    next_begin_ = position + 1;
    return {begin, position};
  }
  next_begin_ = size_;
  return {begin, size_};
}

void TokenArray::read(int64_t begin, std::span<int32_t> ids) {
  bytes_.resize(ids.size() * static_cast<size_t>(bytes_of(type_)));
  file_.read(begin * bytes_of(type_), bytes_);
  for (size_t i = 0; i < ids.size(); ++i) {
    const int64_t id = load_id(type_, bytes_, static_cast<int64_t>(i));
    require(id >= 0 && id < vocab_size_,
            "{}: the id {} at position {} is outside the vocabulary of {}; data.tokenizer must be "
            "the tokenizer of the ids",
            path_.string(), id, begin + static_cast<int64_t>(i), vocab_size_);
    ids[i] = static_cast<int32_t>(id);
  }
}

}  // namespace switchyard
