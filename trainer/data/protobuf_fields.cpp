#include "trainer/data/protobuf_fields.h"

#include "kernels/runtime/check.h"

namespace switchyard {

std::optional<ProtobufFields::Field> ProtobufFields::next() {
  if (rest_.empty()) return std::nullopt;
  const uint64_t tag = varint();
  Field field{.number = tag >> 3, .bytes = {}, .value = 0};
  switch (tag & 7) {
    case 0:
      field.value = varint();
      return field;
    case 1:
      field.bytes = take(8);
      return field;
    case 2:
      field.bytes = take(varint());
      return field;
    case 5:
      field.bytes = take(4);
      return field;
    default:
      fail("it has a field of an unknown kind");
  }
}

uint64_t ProtobufFields::varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = static_cast<uint8_t>(take(1).front());
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
  fail("it has a number of more than 64 bits");
}

std::string_view ProtobufFields::take(uint64_t count) {
  require(count <= rest_.size(), "it is cut off");
  const std::string_view bytes = rest_.substr(0, count);
  rest_.remove_prefix(count);
  return bytes;
}

}  // namespace switchyard
