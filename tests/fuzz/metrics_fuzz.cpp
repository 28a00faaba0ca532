#include <string>

#include "tests/fuzz/fuzz.h"
#include "trainer/files/file_io.h"
#include "trainer/training/metrics.h"

using namespace switchyard;

// A run resumes from step 2 and goes on.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto path = fuzz::write("metrics.jsonl", {data, size});
  fuzz::accepts([&] {
    StepMetrics metrics;
    metrics.step = 3;
    MetricsFile(path, 2).append(metrics);

    const std::string record = to_json(metrics) + '\n', text = read_file(path);
    fuzz::expect(text.ends_with(record), "the record of a step is the last line");
    const std::string kept = text.substr(0, text.size() - record.size());
    fuzz::expect(kept.empty() || kept.back() == '\n', "no torn line is kept");
    fuzz::expect(fuzz::text_of({data, size}).starts_with(kept), "kept lines are as they were");
  });
  return 0;
}
