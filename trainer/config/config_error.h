#pragma once

#include <string>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {

// All problems of a configuration, one line each. main prints the lines and exits with
// kExitBadInput.
class ConfigError : public Error {
 public:
  explicit ConfigError(std::vector<std::string> lines);

  const std::vector<std::string>& lines() const { return lines_; }

 private:
  std::vector<std::string> lines_;
};

}  // namespace switchyard
