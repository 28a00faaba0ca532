#include <cstddef>
#include <string_view>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/hdf5.h"

// The parts of hdf5.h that make no call to the library.
namespace switchyard::hdf5 {

size_t size_of(Element element) {
  switch (element) {
    case Element::u8:
      return 1;
    case Element::u16:
      return 2;
    case Element::u32:
    case Element::i32:
    case Element::f32:
      return 4;
    case Element::i64:
    case Element::f64:
      return 8;
  }
  fail("no such element type");
}

std::string_view to_string(Element element) {
  constexpr std::string_view kNames[] = {"u8", "u16", "u32", "i32", "i64", "f32", "f64"};
  return kNames[static_cast<size_t>(element)];
}

Handle::Handle(Handle&& other) noexcept
    : id_(std::exchange(other.id_, -1)), close_(std::exchange(other.close_, nullptr)) {}

Handle& Handle::operator=(Handle&& other) noexcept {
  if (this != &other) {
    reset();
    id_ = std::exchange(other.id_, -1);
    close_ = std::exchange(other.close_, nullptr);
  }
  return *this;
}

bool Handle::reset() noexcept {
  const int64_t id = std::exchange(id_, -1);
  if (id < 0 || !close_) return true;
  return close_(id) >= 0;
}

}  // namespace switchyard::hdf5
