#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace switchyard {

// Reads the fields of a protocol buffer's message one by one, in its wire format. Throws Error
// where the message is damaged.
class ProtobufFields {
 public:
  explicit ProtobufFields(std::string_view message) : rest_(message) {}

  struct Field {
    uint64_t number = 0;
    std::string_view bytes;  // of a string or a message, or the 4 or 8 of a fixed number
    uint64_t value = 0;      // of a number of variable length
  };
  // The next field; none at the end.
  std::optional<Field> next();

 private:
  uint64_t varint();
  std::string_view take(uint64_t count);

  std::string_view rest_;
};

}  // namespace switchyard
