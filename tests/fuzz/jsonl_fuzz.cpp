#include "tests/fuzz/fuzz.h"
#include "trainer/data/corpus.h"

using namespace switchyard;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto path = fuzz::write("corpus.jsonl", {data, size});
  fuzz::accepts([&] {
    const Corpus corpus({path.string()});
    DocumentReader reader(corpus);
    while (const auto document = reader.next()) {
      fuzz::expect(!document->text.empty(), "no document is empty");
    }
  });
  return 0;
}
