#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/communicator.h"

namespace switchyard {

// The text of every rank of the group, in order of rank, on every rank. Collective.
std::vector<std::string> gather_text(Communicator& group, std::string_view text);

// The text of the first rank, on every rank. Collective.
std::string broadcast_text(Communicator& group, std::string_view text);

// The lines of all ranks, in order of rank. A line must hold no line break. Collective.
std::vector<std::string> gather_lines(Communicator& group, std::span<const std::string> lines);

}  // namespace switchyard
