#pragma once

#include <fmt/format.h>

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kernels/runtime/methods.h"
#include "parallel/communicator.h"
#include "trainer/checkpoint/methods.h"

namespace switchyard {

// The choice of one op's method for a run; there is none until `choose` is called.
template <class Method>
class MethodChoice {
 public:
  using Set = void(Method);

  // Sets the method that takes less time on all ranks together. Collective.
  //   mine  what this rank measured
  void choose(Stream& stream, Communicator& world, MethodSeconds<Method> mine, Set* set) {
    world.all_reduce(stream, view_of(std::span<double>(mine.seconds)), ReduceOp::sum);
    measured_ = mine;
    set_ = set;
    use(mine.fastest());
  }

  std::optional<Method> method() const { return method_; }

  // Goes on with the method of a checkpoint, so that it goes on with the same bits. Returns false
  // if some rank does not have it.
  bool keep(std::optional<Method> of_checkpoint) {
    if (!method_ || !of_checkpoint) return true;
    if (!measured_.has(*of_checkpoint)) return false;
    use(*of_checkpoint);
    return true;
  }

  // The method and what was measured, for people; empty without a choice.
  std::string describe(std::string_view op) const {
    if (!method_) return "";
    std::string text = fmt::format("the method of {} is {}", op_in_words(op), to_string(*method_));
    for (const auto& [other, name] : names_of(Method{})) {
      if (other == *method_) continue;
      text += measured_.has(other) ? fmt::format("; {} takes {:.2f} times as long", name,
                                                 measured_[other] / measured_[*method_])
                                   : fmt::format("; not every rank has {}", name);
    }
    return text;
  }

 private:
  void use(Method method) {
    method_ = method;
    set_(method);
  }

  std::optional<Method> method_;
  MethodSeconds<Method> measured_;  // sums over the ranks
  Set* set_ = nullptr;
};

}  // namespace switchyard
