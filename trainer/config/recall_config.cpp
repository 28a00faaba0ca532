#include "trainer/config/recall_config.h"

#include <array>
#include <cstddef>

namespace switchyard {

std::string_view to_string(RecallTask task) {
  constexpr std::array<std::string_view, 6> kNames = {
      "single", "multi_key", "multi_value", "multi_query", "variable_tracking", "practice"};
  return kNames[static_cast<size_t>(task)];
}

}  // namespace switchyard
