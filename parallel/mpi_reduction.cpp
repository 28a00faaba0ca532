#include "parallel/mpi_reduction.h"

#include <algorithm>
#include <utility>

namespace switchyard {

int64_t elements_per_message(int group_size) {
  constexpr int64_t kBlockElements = int64_t{1} << 18, kShortestMessage = 4096;
  return std::max(kBlockElements / group_size, kShortestMessage);
}

MpiReduction::MpiReduction(const MpiGroup& group, int tag, ConstTensorView in, ReduceOp op,
                           Blocks blocks, Line& line)
    : group_(group),
      tag_(tag),
      in_(in),
      op_(op),
      blocks_(std::move(blocks)),
      line_(line),
      place_(line.take_place()) {}

void MpiReduction::begin_block() {
  const auto size = static_cast<size_t>(group_.size), me = static_cast<size_t>(group_.rank);
  Open& open = open_.emplace_back(
      Open{.block = blocks_.make(next_), .parts = {}, .messages = MpiMessages(group_, tag_)});
  const Block& block = open.block;
  const auto part_of = [&](size_t r) { return in_.rows(block.begins[r], block.counts[r]); };
  // The blocks that are under way use the memory in turn.
  const size_t bytes_of_block =
      static_cast<size_t>(blocks_.longest) * (size - 1) * size_of(in_.dtype());
  const size_t needed = bytes_of_block * line_.blocks_at_a_time;
  if (line_.memory.size() < needed) line_.memory.resize(needed);
  const size_t turn = static_cast<size_t>(next_) % line_.blocks_at_a_time;
  std::byte* const received = line_.memory.data() + turn * bytes_of_block;
  const size_t part_bytes = static_cast<size_t>(block.counts[me]) * size_of(in_.dtype());
  const auto place_of = [&](size_t r) {
    const size_t i = (me + size - r) % size - 1;
    return TensorView(received + i * part_bytes, Shape{block.counts[me]}, in_.dtype());
  };
  for (size_t r = 0; r < size; ++r) open.parts.push_back(r == me ? part_of(r) : place_of(r));
  open.messages.exchange(part_of, place_of);
  ++next_;
}

bool MpiReduction::advance(bool may_wait) {
  if (!line_.is_turn_of(place_)) return false;
  while (next_ < blocks_.number && open_.size() < line_.blocks_at_a_time) begin_block();
  if (!open_.empty()) {
    Open& first = open_.front();
    if (!first.messages.have_arrived(may_wait)) return false;
    cpu::combine_parts(stream_, first.parts, op_, first.block.out);
    open_.pop_front();
  }
  if (!open_.empty() || next_ < blocks_.number) return false;
  line_.pass_on();
  return true;
}

}  // namespace switchyard
