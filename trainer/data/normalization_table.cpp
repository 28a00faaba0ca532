#include "trainer/data/normalization_table.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// Fields of ModelProto and of its NormalizerSpec (sentencepiece_model.proto).
constexpr uint64_t kNormalizer = 3, kDenormalizer = 5, kCharsMap = 2;

// Reads the fields of a protocol buffer's message, in its wire format.
class Fields {
 public:
  explicit Fields(std::string_view message) : rest_(message) {}

  struct Field {
    uint64_t number;
    std::string_view bytes;  // empty unless the field is a string or a message
  };
  // The next field; none at the end.
  std::optional<Field> next() {
    if (rest_.empty()) return std::nullopt;
    const uint64_t tag = varint();
    switch (tag & 7) {
      case 0:
        varint();
        return Field{tag >> 3, {}};
      case 1:
        take(8);
        return Field{tag >> 3, {}};
      case 2:
        return Field{tag >> 3, take(varint())};
      case 5:
        take(4);
        return Field{tag >> 3, {}};
      default:
        fail("it has a field of an unknown kind");
    }
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1).front());
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    fail("it has a number of more than 64 bits");
  }

  std::string_view take(uint64_t count) {
    require(count <= rest_.size(), "it is cut off");
    const std::string_view bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return bytes;
  }

  std::string_view rest_;
};

uint32_t word_at(std::string_view bytes, size_t index) {
  uint32_t word;
  std::memcpy(&word, bytes.data() + index * sizeof(word), sizeof(word));
  return word;
}

// A table is the size of a trie, the trie, and the texts that it leads to, each ended by a zero
// byte. The trie is a double array (Darts, by Yata): from unit i a byte c leads to unit
// i ^ offset ^ c, and units with the highest bit hold the place of a text.
void check_table(std::string_view table) {
  if (table.empty()) return;
  require(table.size() > sizeof(uint32_t), "its normalization table is cut off");
  const size_t trie_bytes = word_at(table, 0);
  table.remove_prefix(sizeof(uint32_t));
  require(trie_bytes < table.size() && trie_bytes >= sizeof(uint32_t),
          "its normalization table has a trie of {} bytes", trie_bytes);
  const std::string_view trie = table.substr(0, trie_bytes), texts = table.substr(trie_bytes);
  require(texts.back() == '\0', "the last text of its normalization table has no end");
  const size_t units = trie.size() / sizeof(uint32_t);
  for (size_t i = 0; i < units; ++i) {
    const uint32_t unit = word_at(trie, i);
    if (unit >> 31 != 0) {
      require((unit & 0x7FFFFFFFu) < texts.size(),
              "its normalization table leads out of its texts");
      continue;
    }
    const uint64_t offset = uint64_t{unit >> 10} << ((unit & 0x200u) >> 6);
    require(((i ^ offset) | 0xFFu) < units, "its normalization table leads out of its trie");
  }
}

}  // namespace

void require_sound_normalization(std::string_view model) {
  Fields fields(model);
  while (const auto field = fields.next()) {
    if (field->number != kNormalizer && field->number != kDenormalizer) continue;
    Fields of_normalizer(field->bytes);
    while (const auto part = of_normalizer.next()) {
      if (part->number == kCharsMap) check_table(part->bytes);
    }
  }
}

}  // namespace switchyard
