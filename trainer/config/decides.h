#pragma once

#include <string_view>

namespace switchyard {

// What the value of a key decides, and so whose value counts where a checkpoint is loaded; see
// checkpoint_config.h.
enum class Decides {
  model,      // what the model computes: the checkpoint's value, always
  context,    // the same, but training may go on with sequences of another length
  state,      // what the optimizer's stored state means: the checkpoint's value, in training
  training,   // how training goes on: the configuration's value; changes are listed
  elsewhere,  // what other commands do, and the names of files that are checked by their contents
};

// Throws Error for a key that is missing in the table of decides.cpp.
Decides decided_by(std::string_view key);

}  // namespace switchyard
