#include "trainer/data/normalization_table.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

uint32_t word_at(std::string_view bytes, size_t index) {
  uint32_t word;
  std::memcpy(&word, bytes.data() + index * sizeof(word), sizeof(word));
  return word;
}

}  // namespace

// A table is the size of a trie, the trie, and the texts that it leads to, each ended by a zero
// byte. The trie is a double array (Darts, by Yata): from unit i a byte c leads to unit
// i ^ offset ^ c, and units with the highest bit hold the place of a text.
void require_sound_normalization(std::string_view table) {
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

}  // namespace switchyard
