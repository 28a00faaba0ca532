#include <numeric>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "trainer/data/tokenizer.h"
#include "trainer/interop/sentencepiece_json.h"

using namespace switchyard;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto path = fuzz::write("tokenizer.model", {data, size});
  fuzz::accepts([&] {
    const auto tokenizer = make_tokenizer(
        {.type = TokenizerType::sentencepiece, .model = path.string(), .vocab_size = 0});
    for (const char* text : {"", "the cat sat", " \n\t 12 \xc3\xa9\xe2\x96\x81\xff\xc0 a  b\n"}) {
      for (const int32_t token : tokenizer->encode(text)) {
        fuzz::expect(token >= 0 && token < tokenizer->vocab_size(),
                     "every token is in the vocabulary");
      }
    }
    std::vector<int32_t> all(static_cast<size_t>(tokenizer->vocab_size()));
    std::iota(all.begin(), all.end(), 0);
    tokenizer->decode(all);
    sentencepiece_json(parse_sentencepiece_model(fuzz::text_of({data, size}))).dump();
  });
  return 0;
}
