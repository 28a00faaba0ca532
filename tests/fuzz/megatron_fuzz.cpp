#include <algorithm>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "trainer/data/token_array.h"

using namespace switchyard;

// The first byte says how many of the next ones are the ids; the others are the index.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const fuzz::Bytes rest(data + 1, size - 1);
  const size_t ids = std::min<size_t>(data[0], rest.size());
  const auto path = fuzz::write("a.bin", rest.first(ids));
  fuzz::write("a.idx", rest.subspan(ids));
  fuzz::accepts([&] {
    TokenArray array(path, ArrayDType::none, 257, 256);
    while (const auto ranges = array.next_document()) {
      for (const auto& [begin, end] : *ranges) {
        fuzz::expect(0 <= begin && begin <= end && end <= static_cast<int64_t>(ids),
                     "every document lies in the file");
        std::vector<int32_t> read(static_cast<size_t>(end - begin));
        fuzz::accepts([&] { array.read(begin, read); });
        for (const int32_t id : read)
          fuzz::expect(id >= 0 && id < 257, "ids are in the vocabulary");
      }
    }
  });
  return 0;
}
