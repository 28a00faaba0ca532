#pragma once

#include <string_view>

namespace switchyard {

// The files of trainer/interop/compact, which the build puts into the program.
extern const std::string_view kCompactConfiguration;  // configuration_switchyard.py
extern const std::string_view kCompactModeling;       // modeling_switchyard.py

}  // namespace switchyard
