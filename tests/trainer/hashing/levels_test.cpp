#include "trainer/hashing/levels.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/decode/hash_encode.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

// What is learned is the order of keys by the levels of round_to_levels; what decodes are the bits
// of hash_encode. With the identity as the projection both see the same values.
TEST(Levels, AreThoseOfTheCodesThatDecode) {
  constexpr int64_t kColumns = 64, kKeys = 300;
  Tensor identity({1, kColumns, kColumns}, DType::f32), none({1, kColumns}, DType::f32);
  for (int64_t i = 0; i < kColumns; ++i) identity.data<float>()[i * kColumns + i] = 1.0f;
  const Tensor keys = test::random_tensor({1, 1, kKeys, kColumns}, 1);
  for (const int64_t planes : {1, 2, 3, 4}) {
    SCOPED_TRACE(planes);
    Tensor levels({kKeys, kColumns}, DType::f32);
    const std::vector<float> lengths =
        round_to_levels(keys.view().reshape({kKeys, kColumns}), planes, levels);

    Stream stream;
    Tensor codes({1, 1, kKeys, planes * kColumns / 32}, DType::i32);
    Tensor norms({1, 1, kKeys}, DType::f32);
    hash_encode(stream, {}, keys,
                {.keys = identity, .queries = identity, .thresholds = none, .key_planes = planes},
                0, {}, codes, norms);

    const auto words = test::to_vector<int32_t>(codes);
    for (int64_t i = 0; i < kKeys; ++i) {
      for (int64_t j = 0; j < kColumns; ++j) {
        int u = 0;
        for (int64_t p = 0; p < planes; ++p) {
          const auto word = static_cast<uint32_t>(
              words[static_cast<size_t>((i * planes + p) * kColumns / 32 + j / 32)]);
          u += static_cast<int>(word >> j % 32 & 1u) << p;
        }
        const float level = levels.data<float>()[i * kColumns + j];
        ASSERT_EQ(level, static_cast<float>(2 * u - (1 << planes) + 1)) << i << ", " << j;
      }
      const float norm = norms.data<float>()[i];
      ASSERT_NEAR(norm, lengths[static_cast<size_t>(i)], 1e-5 * norm);
    }
  }
}

}  // namespace
}  // namespace switchyard
