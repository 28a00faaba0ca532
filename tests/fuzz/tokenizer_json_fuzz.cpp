#include "tests/fuzz/fuzz.h"
#include "trainer/data/tokenizer.h"

using namespace switchyard;

// What this program itself reads of a tokenizer.json. Python does not start.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto path = fuzz::write("tokenizer.json", {data, size});
  for (const char* end : {"", "</s>"}) {
    fuzz::accepts([&] {
      const auto tokenizer = make_tokenizer({.type = TokenizerType::huggingface,
                                             .model = path.string(),
                                             .vocab_size = 0,
                                             .end_of_document = end});
      fuzz::expect(tokenizer->end_of_document() < tokenizer->vocab_size(),
                   "the end of a document is in the vocabulary");
    });
  }
  return 0;
}
