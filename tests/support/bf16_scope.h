#pragma once

#include <gtest/gtest.h>

#include "kernels/cpu/onednn_matmul.h"
#include "kernels/linear/bf16_method.h"

namespace switchyard::test {

// Multiplies bf16 by one method while an object of this class exists.
class Bf16Scope {
 public:
  explicit Bf16Scope(Bf16Method method) : before_(bf16_method()) { set_bf16_method(method); }
  ~Bf16Scope() { set_bf16_method(before_); }
  Bf16Scope(const Bf16Scope&) = delete;
  Bf16Scope& operator=(const Bf16Scope&) = delete;

 private:
  Bf16Method before_;
};

// For tests of native products: not every processor has them.
#define SWITCHYARD_NEEDS_METHOD(method)                       \
  if ((method) == Bf16Method::native && !has_native_bf16()) { \
    GTEST_SKIP() << "this processor has no products of bf16"; \
  }

}  // namespace switchyard::test
