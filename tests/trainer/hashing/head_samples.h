#pragma once

#include <algorithm>
#include <vector>

#include "tests/support/test_tensors.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard::test {

// Queries and keys of one head, far from isotropic: channel d of queries has the size 2^-(d / 4),
// keys have the inverse, and a mean.
//   visible  `sequences` times the same ranges, each sequence on rows of its own
inline HeadQueryKeys sample_head(int64_t group, int64_t sequences, int64_t keys, int64_t head_dim,
                                 const std::vector<KeyRange>& visible, uint64_t seed = 1) {
  const int64_t queries = sequences * std::ssize(visible);
  HeadQueryKeys head{.q = switchyard::Tensor({group, queries, head_dim}, DType::f32),
                     .k = switchyard::Tensor({1, sequences * keys, head_dim}, DType::f32),
                     .visible = {}};
  const auto fill = [&](switchyard::Tensor& to, uint64_t of, bool is_key) {
    const std::vector<float> values = to_floats(random_tensor(to.shape(), of));
    for (int64_t i = 0; i < to.num_elements(); ++i) {
      const auto d = static_cast<float>(i % head_dim);
      const float value = values[static_cast<size_t>(i)];
      to.data<float>()[i] =
          is_key ? std::exp2(d / 4.0f - 1.0f) * value + 3.0f : std::exp2(1.0f - d / 4.0f) * value;
    }
  };
  fill(head.q, seed, false);
  fill(head.k, seed + 100, true);
  for (int64_t s = 0; s < sequences; ++s) {
    for (const KeyRange& range : visible) {
      head.visible.push_back({s * keys + range.begin, s * keys + range.end});
    }
  }
  return head;
}

}  // namespace switchyard::test
