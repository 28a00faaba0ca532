#pragma once

#include <string>

#include "kernels/runtime/check.h"

namespace switchyard::test {

// The message of the Error that `action` throws; empty if it throws none.
template <class Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace switchyard::test
