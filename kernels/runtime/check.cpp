#include "kernels/runtime/check.h"

#include <string_view>

namespace switchyard {

void throw_error(const std::string& message, std::source_location where) {
  std::string_view file = where.file_name();
  if (const auto slash = file.rfind('/'); slash != std::string_view::npos) {
    file.remove_prefix(slash + 1);
  }
  throw Error(fmt::format("{} [{}:{}]", message, file, where.line()));
}

}  // namespace switchyard
