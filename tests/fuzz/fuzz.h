#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "kernels/runtime/check.h"

// What the fuzz targets share. A target is one file NAME_fuzz.cpp with LLVMFuzzerTestOneInput,
// which gives the input to the product's own reader; tests/fuzz/CMakeLists.txt lists the targets.
namespace switchyard::fuzz {

using Bytes = std::span<const uint8_t>;

inline std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline Bytes bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Calls a reader, which may refuse its input by an Error; returns whether it accepted it. Every
// other exception ends the process, as a crash does, and is a finding.
template <class Read>
bool accepts(const Read& read) {
  try {
    read();
    return true;
  } catch (const Error&) {
    return false;
  }
}

// Ends the process, which is a finding, unless the property holds. `accepts` does not hide it.
void expect(bool ok, std::string_view property);

// The folder of this process, which is removed when the process ends.
const std::filesystem::path& folder();
// Writes a file of the folder and returns its path.
std::filesystem::path write(const std::string& name, Bytes bytes);

}  // namespace switchyard::fuzz
