#pragma once

#include <optional>

#include "kernels/attention/attention_method.h"
#include "kernels/linear/expert_product_method.h"

namespace switchyard::test {

// A CUDA device computes an op by one method while an object of this class exists.
template <class Method, std::optional<Method> (*kGet)(), void (*kSet)(std::optional<Method>)>
class MethodScope {
 public:
  explicit MethodScope(std::optional<Method> method) : before_(kGet()) { kSet(method); }
  ~MethodScope() { kSet(before_); }
  MethodScope(const MethodScope&) = delete;
  MethodScope& operator=(const MethodScope&) = delete;

 private:
  std::optional<Method> before_;
};

using ExpertProductScope =
    MethodScope<ExpertProductMethod, &expert_product_method, &set_expert_product_method>;
using AttentionScope = MethodScope<AttentionMethod, &attention_method, &set_attention_method>;

}  // namespace switchyard::test
