#include "trainer/checkpoint/gather_text.h"

#include <algorithm>

namespace switchyard {

std::vector<std::string> gather_text(Communicator& group, std::string_view text) {
  Stream stream;
  const auto size = static_cast<size_t>(group.size());
  const auto length = static_cast<int64_t>(text.size());
  std::vector<int64_t> lengths(size);
  group.all_gather(stream, view_of(std::span(&length, 1)), view_of(std::span(lengths)));

  // All ranks send as much as the longest text.
  const auto longest = static_cast<size_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::vector<uint8_t> mine(longest), all(longest * size);
  std::copy(text.begin(), text.end(), mine.begin());
  if (longest > 0) {
    group.all_gather(stream, view_of(std::span<const uint8_t>(mine)), view_of(std::span(all)));
  }
  std::vector<std::string> texts;
  for (size_t rank = 0; rank < size; ++rank) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(rank * longest);
    texts.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(lengths[rank]));
  }
  return texts;
}

std::string broadcast_text(Communicator& group, std::string_view text) {
  Stream stream;
  auto length = static_cast<int64_t>(text.size());
  group.broadcast(stream, view_of(std::span(&length, 1)), 0);
  std::string shared(text);
  shared.resize(static_cast<size_t>(length));
  group.broadcast(stream,
                  view_of(std::span(reinterpret_cast<uint8_t*>(shared.data()), shared.size())), 0);
  return shared;
}

std::vector<std::string> gather_lines(Communicator& group, std::span<const std::string> lines) {
  std::string text;
  for (const std::string& line : lines) text += line + '\n';
  std::vector<std::string> all;
  for (const std::string& of_rank : gather_text(group, text)) {
    for (size_t begin = 0; begin < of_rank.size();) {
      const size_t end = of_rank.find('\n', begin);
      all.push_back(of_rank.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return all;
}

}  // namespace switchyard
