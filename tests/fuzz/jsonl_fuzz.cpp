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
  fuzz::accepts([&] {
    const Corpus corpus({path.string()});
    DocumentReader reader(corpus, InvalidUtf8::refuse, {RecordForm::segments, "a.text", 1 << 20});
    while (const auto document = reader.next()) {
      fuzz::expect(document->segments.back().end == document->text.size(),
                   "segments make the whole text");
    }
  });
  return 0;
}
