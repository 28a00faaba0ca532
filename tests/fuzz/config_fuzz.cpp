#include <sstream>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "trainer/config/checkpoint_config.h"
#include "trainer/config/config_reader.h"

using namespace switchyard;

namespace {

// Ends the YAML text of an input; every line after it is an override.
constexpr std::string_view kOverrides = "\n%%\n";

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  std::istringstream in{std::string(text)};
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

void use(const LoadedConfig& loaded) {
  for (const int ranks : {1, 8}) fuzz::accepts([&] { validate_config(loaded, ranks); });
  const std::string yaml = to_yaml(loaded.config);
  std::string again;
  fuzz::accepts([&] { again = to_yaml(parse_config(yaml, "printed").config); });
  fuzz::expect(again == yaml, "a printed configuration reads back equal");
  describe_config(loaded);
  for (const CheckpointUse purpose : {CheckpointUse::training, CheckpointUse::inference}) {
    LoadedConfig adopted = parse_config("model: {hidden: 8}", "other");
    fuzz::accepts([&] { adopt_checkpoint_config(adopted, yaml, "step_1", purpose); });
    fuzz::accepts([&] { require_checkpoint_config(adopted.config, yaml, "step_1", purpose); });
  }
  changes_since_checkpoint(RunConfig(), yaml, "step_1");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto base = fuzz::write("base.yaml", fuzz::bytes_of("train: {max_steps: 3}\n"));
  const std::string_view input = fuzz::text_of({data, size});
  const size_t end = input.find(kOverrides);
  const std::string yaml(input.substr(0, end));
  std::vector<std::string> overrides;
  if (end != input.npos) overrides = lines_of(input.substr(end + kOverrides.size()));

  const auto path = fuzz::write("experiment.yaml", fuzz::bytes_of(yaml));
  fuzz::accepts([&] { use(load_config(path.string(), overrides)); });
  fuzz::accepts([&] { use(load_stored_config(yaml, "a checkpoint", overrides)); });
  return 0;
}
