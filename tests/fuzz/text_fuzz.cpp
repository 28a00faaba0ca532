#include <string>

#include "tests/fuzz/fuzz.h"
#include "trainer/data/corpus.h"

using namespace switchyard;

namespace {

// Every way to read a text gives the same bytes.
void read(const std::filesystem::path& path) {
  fuzz::accepts([&] {
    const std::string whole = TextFile(path).read_all();
    std::string lines;
    TextFile file(path);
    while (const auto line = file.next_line()) lines += line->text + '\n';
    if (!whole.empty() && whole.back() != '\n') lines.pop_back();
    fuzz::expect(lines == whole, "the lines of a file are the file");
  });
  fuzz::accepts([&] {
    const Corpus corpus({path.string()});
    DocumentReader reader(corpus);
    while (reader.next()) {
    }
  });
}

}  // namespace

// The same bytes as a text, as a compressed text, and as compressed JSON lines.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const char* name : {"corpus.txt", "corpus.md.gz", "corpus.jsonl.gz"}) {
    read(fuzz::write(name, {data, size}));
  }
  return 0;
}
