#include <string>

#include "tests/fuzz/checksums.h"
#include "tests/fuzz/fuzz.h"
#include "trainer/checkpoint/manifest.h"

using namespace switchyard;

namespace {

void read_and_use(const std::string& text) {
  fuzz::accepts([&] {
    const Manifest manifest = parse_manifest(text, "manifest.json");
    Manifest again;
    fuzz::accepts([&] { again = parse_manifest(to_text(manifest), "again"); });
    fuzz::expect(again == manifest, "a written manifest reads back equal");
    checkpoint_fingerprint(manifest);
    fuzz::accepts([&] { require_same_tokenizer(manifest.state, "0123456789abcdef", "step_1"); });
    model_fingerprint(tensors_of(manifest.shards));
  });
}

}  // namespace

// Reads the text as it is, then with the right checksum, so that wrong contents pass it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string text(fuzz::text_of({data, size}));
  read_and_use(text);
  fuzz::repair_manifest(text);
  read_and_use(text);
  return 0;
}
