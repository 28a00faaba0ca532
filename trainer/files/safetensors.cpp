#include "trainer/files/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "kernels/runtime/bfloat16.h"
#include "kernels/runtime/check.h"

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

namespace switchyard::safetensors {
namespace {

using Json = nlohmann::json;

constexpr int64_t kLengthBytes = 8;
constexpr uint64_t kLongestHeader = 100'000'000;  // the limit of the format's own library
constexpr int64_t kChunkElements = 1 << 18;
constexpr char kMetadata[] = "__metadata__";

struct Type {
  const char* name;
  int64_t bytes;
  std::optional<Element> element;
};
constexpr Type kTypes[] = {
    {"F32", 4, Element::f32},
    {"F16", 2, Element::f16},
    {"BF16", 2, Element::bf16},
    {"F64", 8, {}},
    {"I64", 8, {}},
    {"U64", 8, {}},
    {"I32", 4, {}},
    {"U32", 4, {}},
    {"I16", 2, {}},
    {"U16", 2, {}},
    {"I8", 1, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
    {"F8_E5M2", 1, {}},
    {"F8_E4M3", 1, {}},
    {"F8_E8M0", 1, {}},
};

int64_t product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

const Type& type_of(Element element) {
  return *std::ranges::find(kTypes, std::optional(element), &Type::element);
}

// IEEE 754's binary16. Every value of it is one of f32.
float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half >> 15) << 31;
  const uint32_t exponent = (half >> 10) & 0x1f, fraction = half & 0x3ff;
  if (exponent == 0) {  // zero, or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t widened = exponent == 0x1f ? 0xff : exponent + (127 - 15);
  return std::bit_cast<float>(sign | widened << 23 | fraction << 13);
}

template <class Stored, class Convert>
void widen(const InputFile& file, int64_t offset, std::span<float> values, Convert convert) {
  std::vector<Stored> stored(values.size());
  file.read(offset, std::as_writable_bytes(std::span(stored)));
  std::ranges::transform(stored, values.begin(), convert);
}

// JSON keeps the last of two equal keys; here two are an error.
Json parse_header(const std::string& text) {
  std::vector<std::set<std::string>> keys;
  const auto check_key = [&](int depth, Json::parse_event_t event, const Json& parsed) {
    const auto level = static_cast<size_t>(depth);
    if (event == Json::parse_event_t::object_start) {
      keys.resize(std::max(keys.size(), level + 2));
      keys[level + 1].clear();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      require(keys[level].insert(key).second, "\"{}\" stands there twice", key);
    }
    return true;
  };
  Json header;
  try {
    header = Json::parse(text, check_key);
  } catch (const Json::exception&) {
    fail("it is not JSON");
  }
  require(header.is_object(), "it is not a JSON object");
  return header;
}

// A whole number from 0 to `highest`.
int64_t whole_number(const Json& json, int64_t highest, const char* what) {
  require(json.is_number_unsigned() && json.get<uint64_t>() <= static_cast<uint64_t>(highest),
          "{} is {}, not a whole number from 0 to {}", what,
          json.dump(-1, ' ', false, Json::error_handler_t::replace), highest);
  return json.get<int64_t>();
}

std::vector<int64_t> shape_of(const Json& json, int64_t most_elements) {
  require(json.is_array(), "it has no shape");
  std::vector<int64_t> shape;
  int64_t elements = 1;
  for (const Json& size : json) {
    shape.push_back(whole_number(size, most_elements, "a size"));
    if (shape.back() == 0) elements = 0;
    require(elements == 0 || shape.back() <= most_elements / elements,
            "its shape has more elements than the file");
    elements *= shape.back();
  }
  return shape;
}

// `data_bytes`: of all tensors; offsets in the header count from the first of them.
TensorInfo tensor_of(const Json& json, int64_t data_begin, int64_t data_bytes) {
  require(json.is_object() && json.contains("dtype") && json["dtype"].is_string(),
          "it has no dtype");
  TensorInfo tensor;
  tensor.type = json["dtype"].get<std::string>();
  const Type* type = std::ranges::find(kTypes, tensor.type, &Type::name);
  require(type != std::end(kTypes), "its dtype {} is not known", tensor.type);
  tensor.element = type->element;
  tensor.shape = shape_of(json.value("shape", Json()), data_bytes);
  const Json offsets = json.value("data_offsets", Json());
  require(offsets.is_array() && offsets.size() == 2, "it has no data_offsets");
  const int64_t begin = whole_number(offsets[0], data_bytes, "its begin");
  const int64_t end = whole_number(offsets[1], data_bytes, "its end");
  require(begin <= end && (end - begin) % type->bytes == 0 &&
              (end - begin) / type->bytes == tensor.num_elements(),
          "its data_offsets [{}, {}] do not suit its shape and dtype", begin, end);
  tensor.offset = data_begin + begin;
  tensor.bytes = end - begin;
  return tensor;
}

// Where the last tensor ends, as the header says.
uint64_t claimed_end(const Json& header) {
  uint64_t end = 0;
  for (const Json& tensor : header) {
    if (!tensor.is_object() || !tensor.contains("data_offsets")) continue;
    const Json& offsets = tensor["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[1].is_number_unsigned()) continue;
    end = std::max(end, offsets[1].get<uint64_t>());
  }
  return end;
}

// The tensors cover the data without gap or overlap, so that nothing is hidden in a file.
void require_coverage(const std::map<std::string, TensorInfo>& tensors, int64_t begin,
                      int64_t end) {
  std::vector<std::pair<const TensorInfo*, std::string_view>> sorted;
  for (const auto& [name, tensor] : tensors) sorted.emplace_back(&tensor, name);
  std::ranges::sort(sorted, {}, [](const auto& entry) {
    return std::pair(entry.first->offset, entry.first->bytes);
  });
  for (const auto& [tensor, name] : sorted) {
    require(tensor->offset >= begin, "tensor {} overlaps with the one before", name);
    require(tensor->offset == begin, "{} bytes before tensor {} belong to none",
            tensor->offset - begin, name);
    begin = tensor->offset + tensor->bytes;
  }
  require(begin == end, "the last {} bytes belong to no tensor", end - begin);
}

std::vector<std::byte> encode_header(const std::vector<Declaration>& tensors,
                                     const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  int64_t offset = 0;
  for (const Declaration& tensor : tensors) {
    require(tensor.element != Element::f16, "f16 is not written");
    const Type& type = type_of(tensor.element);
    const int64_t bytes = type.bytes * product(tensor.shape);
    require(!header.contains(tensor.name), "tensor {} is declared twice", tensor.name);
    header[tensor.name] = {
        {"dtype", type.name}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const auto length = static_cast<uint64_t>(text.size());
  std::vector<std::byte> bytes(kLengthBytes + text.size());
  std::memcpy(bytes.data(), &length, kLengthBytes);
  std::memcpy(bytes.data() + kLengthBytes, text.data(), text.size());
  return bytes;
}

}  // namespace

int64_t size_of(Element element) { return type_of(element).bytes; }

int64_t TensorInfo::num_elements() const { return product(shape); }

Reader::Reader(const std::filesystem::path& path) : path_(path), file_(path) { read_header(); }

void Reader::read_header() {
  const int64_t size = file_.size();
  uint64_t length = 0;
  require(size >= kLengthBytes, "{} is too short to be a safetensors file", path_.string());
  file_.read(0, std::as_writable_bytes(std::span(&length, 1)));
  require(length <= kLongestHeader && static_cast<int64_t>(length) <= size - kLengthBytes,
          "{} is not a safetensors file, or was cut off: its header claims {} bytes",
          path_.string(), length);
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(length);
  std::string text(length, ' ');
  file_.read(kLengthBytes, std::as_writable_bytes(std::span(text)));
  std::string place = "the header";
  try {
    const Json header = parse_header(text);
    const uint64_t end = claimed_end(header);
    require(end <= static_cast<uint64_t>(size - data_begin),
            "its tensors take {} bytes, and {} are there: the file was cut off", end,
            size - data_begin);
    for (const auto& [name, json] : header.items()) {
      place = fmt::format("tensor {}", name);
      if (name == kMetadata) {
        for (const auto& [key, value] : json.items()) {
          require(value.is_string(), "\"{}\" is not text", key);
          metadata_[key] = value.get<std::string>();
        }
        continue;
      }
      tensors_[name] = tensor_of(json, data_begin, size - data_begin);
    }
    place = "the header";
    require_coverage(tensors_, data_begin, size);
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}: {}", path_.string(), place, error.what()));
  }
}

void Reader::read(const std::string& name, int64_t first, std::span<float> values) const {
  const auto found = tensors_.find(name);
  require(found != tensors_.end(), "{} has no tensor {}", path_.string(), name);
  const TensorInfo& tensor = found->second;
  require(tensor.element.has_value(), "{}: tensor {} is {}, not F32, F16 or BF16", path_.string(),
          name, tensor.type);
  const auto count = static_cast<int64_t>(values.size());
  require(first >= 0 && first + count <= tensor.num_elements(),
          "{}: tensor {} has no elements [{}, {})", path_.string(), name, first, first + count);
  const int64_t width = size_of(*tensor.element);
  if (tensor.element == Element::f32) {
    file_.read(tensor.offset + first * width, std::as_writable_bytes(values));
    return;
  }
  for (int64_t begin = 0; begin < count; begin += kChunkElements) {
    const auto part = values.subspan(static_cast<size_t>(begin),
                                     static_cast<size_t>(std::min(kChunkElements, count - begin)));
    const int64_t offset = tensor.offset + (first + begin) * width;
    if (tensor.element == Element::f16) {
      widen<uint16_t>(file_, offset, part, float_of_half);
    } else {
      widen<bfloat16>(file_, offset, part, [](bfloat16 value) -> float { return value; });
    }
  }
}

Writer::Writer(const std::filesystem::path& path, std::vector<Declaration> tensors,
               const std::map<std::string, std::string>& metadata)
    : unfinished_(path), file_(unfinished_.path()) {
  const std::vector<std::byte> header = encode_header(tensors, metadata);
  file_.write(header);
  auto offset = static_cast<int64_t>(header.size());
  for (Declaration& tensor : tensors) {
    const int64_t bytes = size_of(tensor.element) * product(tensor.shape);
    std::string name = tensor.name;
    tensors_.emplace(std::move(name), Progress{std::move(tensor), offset});
    offset += bytes;
  }
}

void Writer::write(const std::string& name, std::span<const float> values) {
  const auto found = tensors_.find(name);
  require(found != tensors_.end(), "tensor {} was not declared", name);
  auto& [declaration, begin, written] = found->second;
  const auto count = static_cast<int64_t>(values.size());
  require(written + count <= product(declaration.shape), "tensor {} has fewer elements", name);
  const int64_t offset = begin + written * size_of(declaration.element);
  written += count;
  if (declaration.element == Element::f32) {
    file_.write_at(offset, std::as_bytes(values));
    return;
  }
  std::vector<bfloat16> rounded(values.size());
  std::ranges::transform(values, rounded.begin(), [](float value) { return bfloat16(value); });
  file_.write_at(offset, std::as_bytes(std::span(rounded)));
}

void Writer::publish() {
  for (const auto& [name, tensor] : tensors_) {
    require(tensor.written == product(tensor.declaration.shape), "tensor {} was not written whole",
            name);
  }
  file_.close();
  unfinished_.publish();
}

}  // namespace switchyard::safetensors
