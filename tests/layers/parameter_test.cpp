// Declaring, laying out, fusing and drawing parameters.
#include "layers/parameter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "kernels/runtime/check.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

constexpr uint64_t kSeed = 11;

ParameterSpec whole(std::string name, Shape shape, DType dtype = DType::f32,
                    Init init = Init::normal(1.0f)) {
  const std::vector<int64_t> zeros(static_cast<size_t>(shape.rank()), 0);
  return {.name = std::move(name),
          .global_shape = shape,
          .offset = Shape(std::span<const int64_t>(zeros)),
          .extent = shape,
          .group = ParameterGroup::replicated,
          .dtype = dtype,
          .decay = true,
          .init = init};
}

class ParameterStoreTest : public testing::Test {
 protected:
  Stream stream_;
  ParameterStore store_;
};

TEST_F(ParameterStoreTest, ReferencesStayValidAndViewsArePlacedEndToEnd) {
  std::vector<Parameter*> added;
  for (int i = 0; i < 257; ++i) added.push_back(&store_.add(whole(std::to_string(i), {3, 5})));

  store_.materialize(stream_, kSeed, /*world_size=*/1);

  for (int64_t i = 0; i < 257; ++i) {
    const Parameter& p = *added[static_cast<size_t>(i)];
    EXPECT_EQ(p.spec.name, std::to_string(i));
    EXPECT_EQ(p.flat_begin, 15 * i);
    EXPECT_EQ(p.value.data<float>(), added[0]->value.data<float>() + 15 * i);
    EXPECT_EQ(p.grad.data<float>(), added[0]->grad.data<float>() + 15 * i);
  }
  EXPECT_EQ(store_.num_elements(), 257 * 15);
}

TEST_F(ParameterStoreTest, OneFlatBufferPerGroupAndDtypeWithF32Gradients) {
  ParameterSpec expert = whole("expert", {2, 3, 4}, DType::bf16);
  expert.group = ParameterGroup::expert;
  ParameterSpec sharded = whole("sharded", {8, 3}, DType::bf16);
  sharded.group = ParameterGroup::sharded;
  Parameter& first = store_.add(whole("weight", {4, 3}, DType::bf16));
  store_.add(whole("norm", {7}));
  store_.add(expert);
  store_.add(sharded);
  store_.add(whole("weight2", {2, 3}, DType::bf16));

  store_.materialize(stream_, kSeed, /*world_size=*/1);

  ASSERT_EQ(store_.buffers().size(), 4u);
  EXPECT_EQ(store_.buffers()[0].num_elements, 4 * 3 + 2 * 3);
  for (const FlatBuffer& buffer : store_.buffers()) {
    EXPECT_EQ(buffer.values.dtype(), buffer.dtype);
    EXPECT_EQ(buffer.grads.dtype(), DType::f32);
  }
  EXPECT_EQ(first.value.dtype(), DType::bf16);
  EXPECT_EQ(first.grad.dtype(), DType::f32);
}

TEST_F(ParameterStoreTest, AStageThatFindsAFullFlatBufferBeginsAnother) {
  ParameterStore store(/*bucket_elements=*/12);
  store.add(whole("table", {2, 3}));
  store.begin_stage();
  Parameter& first = store.add(whole("q", {2, 3}));
  Parameter& last = store.add(whole("k", {4, 3}));
  store.begin_stage();
  store.add(whole("head", {1, 3}));
  store.begin_stage();
  store.add(whole("norm", {3}));

  store.materialize(stream_, kSeed, /*world_size=*/1);

  ASSERT_EQ(store.buffers().size(), 2u);
  EXPECT_EQ(store.buffers()[0].num_elements, 24);
  EXPECT_EQ(store.buffers()[0].first_stage, 0);
  EXPECT_EQ(store.buffers()[1].num_elements, 7);  // a gap aligns parameters to 16 bytes
  EXPECT_EQ(store.buffers()[1].first_stage, 2);
  EXPECT_EQ(store.buffers()[1].parameters.front()->flat_begin, 0);
  EXPECT_EQ(store.fused_value(first, last).shape(), Shape({6, 3}));
}

// A ring of 1,024 ranks sends parts of 1 MiB of gradients, not of 64 KiB.
TEST_F(ParameterStoreTest, BucketsGrowWithTheRanksThatSumThem) {
  EXPECT_EQ(ParameterStore::bucket_elements_of(1), int64_t{16} << 20);
  EXPECT_EQ(ParameterStore::bucket_elements_of(64), int64_t{16} << 20);
  EXPECT_EQ(ParameterStore::bucket_elements_of(1024), int64_t{256} << 20);
}

TEST_F(ParameterStoreTest, EachGroupHasBucketsOfItsOwnSize) {
  ParameterStore store({.sharded = 6, .replicated = 100, .expert = 12});
  for (int stage = 0; stage < 3; ++stage) {
    store.begin_stage();
    const std::string name = std::to_string(stage);
    for (const ParameterGroup group : kParameterGroups) {
      ParameterSpec spec = whole(name + "." + std::to_string(static_cast<int>(group)), {2, 3});
      spec.group = group;
      store.add(spec);
    }
  }

  std::map<ParameterGroup, int> buckets;
  for (const FlatBuffer& buffer : store.buffers()) ++buckets[buffer.group];
  EXPECT_EQ(buckets[ParameterGroup::sharded], 3);
  EXPECT_EQ(buckets[ParameterGroup::replicated], 1);
  EXPECT_EQ(buckets[ParameterGroup::expert], 2);
}

TEST_F(ParameterStoreTest, FlatBuffersSplitEvenlyOverAnyGroupAndArePaddedWithZeros) {
  for (const int world : {1, 2, 6, 8, 1024}) {
    for (const int64_t n : {1, 31, 32, 33, 257}) {
      ParameterStore store;
      store.add(whole("weight", {n}));

      store.materialize(stream_, kSeed, world);

      const FlatBuffer& buffer = store.buffers()[0];
      const int64_t padded = buffer.values.num_elements();
      EXPECT_EQ(padded % (16 * world), 0) << n;
      EXPECT_GE(padded, n);
      EXPECT_LT(padded, n + 16 * world);
      EXPECT_EQ(buffer.grads.num_elements(), padded);
      for (int64_t i = n; i < padded; ++i) ASSERT_EQ(buffer.values.data<float>()[i], 0.0f);
    }
  }
}

TEST_F(ParameterStoreTest, OnesAndZerosAreWhatTheySay) {
  const Parameter& ones = store_.add(whole("ones", {33}, DType::bf16, Init::ones()));
  const Parameter& zeros = store_.add(whole("zeros", {33}, DType::bf16, Init::zeros()));

  store_.materialize(stream_, kSeed, 1);

  EXPECT_EQ(test::to_floats(ones.value), std::vector<float>(33, 1.0f));
  EXPECT_EQ(test::to_floats(zeros.value), std::vector<float>(33, 0.0f));
}

TEST_F(ParameterStoreTest, NormalValuesHaveTheStatedMeanAndStandardDeviation) {
  constexpr int64_t kCount = 200000;
  constexpr double kStd = 0.02;
  const Parameter& weight = store_.add(whole("weight", {kCount}, DType::f32, Init::normal(kStd)));

  store_.materialize(stream_, kSeed, 1);

  double sum = 0.0, squares = 0.0;
  for (const float value : test::to_floats(weight.value)) {
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  // The bounds are five standard errors of the mean and of the standard deviation.
  EXPECT_NEAR(sum / kCount, 0.0, 5 * kStd / std::sqrt(kCount));
  EXPECT_NEAR(std::sqrt(squares / kCount), kStd, 5 * kStd / std::sqrt(2.0 * kCount));
}

// Boxes of rows, of columns and of a slice hold the whole tensor's values, in either dtype.
TEST_F(ParameterStoreTest, BoxesDrawTheValuesOfTheWholeWhateverWasAddedBefore) {
  constexpr int64_t kA = 4, kB = 33, kC = 31;
  const Parameter& reference = store_.add(whole("weight", {kA, kB, kC}));
  store_.materialize(stream_, kSeed, 1);
  const auto expected = test::to_floats(reference.value);
  struct Box {
    Shape offset, extent;
  };
  for (const Box& box : {Box{{1, 0, 0}, {2, kB, kC}}, Box{{0, 32, 0}, {kA, 1, kC}},
                         Box{{0, 0, 7}, {kA, kB, 24}}, Box{{3, 5, 30}, {1, 28, 1}}}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      ParameterStore store;
      store.add(whole("something else", {17}, dtype));
      ParameterSpec spec = whole("weight", {kA, kB, kC}, dtype);
      spec.offset = box.offset;
      spec.extent = box.extent;
      const Parameter& part = store.add(spec);

      store.materialize(stream_, kSeed, /*world_size=*/8);

      size_t i = 0;
      const auto values = test::to_floats(part.value);
      for (int64_t a = 0; a < box.extent[0]; ++a) {
        for (int64_t b = 0; b < box.extent[1]; ++b) {
          for (int64_t c = 0; c < box.extent[2]; ++c, ++i) {
            const int64_t at =
                ((box.offset[0] + a) * kB + box.offset[1] + b) * kC + box.offset[2] + c;
            const float value = expected[static_cast<size_t>(at)];
            ASSERT_EQ(values[i], dtype == DType::f32 ? value : static_cast<float>(bfloat16(value)));
          }
        }
      }
    }
  }
}

TEST_F(ParameterStoreTest, NamesAndSeedsDrawDifferentValues) {
  const auto draw = [this](const std::string& name, uint64_t seed) {
    ParameterStore store;
    const Parameter& p = store.add(whole(name, {32}));
    store.materialize(stream_, seed, 1);
    return test::to_floats(p.value);
  };

  EXPECT_EQ(draw("a", 1), draw("a", 1));
  EXPECT_NE(draw("a", 1), draw("b", 1));
  EXPECT_NE(draw("a", 1), draw("a", 2));
}

TEST_F(ParameterStoreTest, FusedViewsCoverNeighboursInOnePiece) {
  Parameter& q = store_.add(whole("q", {6, 5}));
  store_.add(whole("q_norm", {9}, DType::bf16));  // in another buffer, so not between q and k
  store_.add(whole("k", {2, 5}));
  Parameter& v = store_.add(whole("v", {3, 5}));
  Parameter& bias = store_.add(whole("bias", {4}));
  Parameter& bias2 = store_.add(whole("bias2", {8}));
  Parameter& expert = store_.add(whole("expert", {2, 3, 7}));
  Parameter& expert2 = store_.add(whole("expert2", {1, 3, 7}));
  store_.materialize(stream_, kSeed, 1);

  EXPECT_EQ(store_.fused_value(q, v).shape(), (Shape{11, 5}));
  EXPECT_EQ(store_.fused_value(q, v).raw(), q.value.raw());
  EXPECT_EQ(store_.fused_grad(q, v).shape(), (Shape{11, 5}));
  EXPECT_EQ(store_.fused_grad(q, v).raw(), q.grad.raw());
  EXPECT_EQ(store_.fused_grad(q, v).dtype(), DType::f32);
  EXPECT_EQ(store_.fused_value(q, q).shape(), q.value.shape());
  EXPECT_EQ(store_.fused_value(bias, bias2).shape(), (Shape{12}));
  EXPECT_EQ(store_.fused_value(expert, expert2).shape(), (Shape{3, 3, 7}));
}

TEST_F(ParameterStoreTest, OddSizesDoNotPushOthersOffSixteenBytes) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    ParameterStore store;
    Parameter& odd = store.add(whole("odd", {3, 7}, dtype));
    Parameter& neighbour = store.add(whole("neighbour", {2, 7}, dtype));
    Parameter& weight = store.add(whole("weight", {5, 8}, dtype));
    Parameter& vector = store.add(whole("vector", {1}, dtype));
    Parameter& last = store.add(whole("last", {2, 8}, dtype));

    store.materialize(stream_, kSeed, /*world_size=*/1);

    for (const Parameter* p : {&odd, &weight, &vector, &last}) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p->value.raw()) % 16, 0u) << p->spec.name;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p->grad.raw()) % 16, 0u) << p->spec.name;
    }
    EXPECT_EQ(store.fused_value(odd, neighbour).shape(), (Shape{5, 7}));
    EXPECT_EQ(store.num_elements(), 5 * 7 + 5 * 8 + 1 + 2 * 8);
    EXPECT_EQ(store.buffers()[0].num_elements, last.flat_begin + 2 * 8);
  }
}

TEST_F(ParameterStoreTest, RefusesToFuseWhatDoesNotFit) {
  Parameter& a = store_.add(whole("a", {4, 6}));
  Parameter& odd = store_.add(whole("odd", {3, 5}));
  Parameter& b = store_.add(whole("b", {4, 6}));
  Parameter& rounded = store_.add(whole("rounded", {4, 6}, DType::bf16));
  Parameter& expert = store_.add(whole("expert", {2, 7, 6}));
  EXPECT_THROW(store_.fused_value(a, a), Error);  // no values yet
  store_.materialize(stream_, kSeed, 1);

  EXPECT_THROW(store_.fused_value(a, odd), Error);      // rows of another width
  EXPECT_THROW(store_.fused_value(a, b), Error);        // another parameter between them
  EXPECT_THROW(store_.fused_value(b, a), Error);        // the wrong order
  EXPECT_THROW(store_.fused_value(a, rounded), Error);  // another buffer
  EXPECT_THROW(store_.fused_grad(b, expert), Error);    // another rank
}

TEST_F(ParameterStoreTest, RefusesASecondParameterOfTheSameNameAndMismatchedRanks) {
  store_.add(whole("weight", {4}));
  ParameterSpec flat = whole("flat", {4, 4});
  flat.extent = {16};

  EXPECT_THROW(store_.add(whole("weight", {5})), Error);
  EXPECT_THROW(store_.add(flat), Error);
}

TEST_F(ParameterStoreTest, ZeroGradsClearsEveryBuffer) {
  Parameter& weight = store_.add(whole("weight", {33}, DType::bf16));
  Parameter& norm = store_.add(whole("norm", {31}));
  store_.materialize(stream_, kSeed, 1);
  for (Parameter* p : {&weight, &norm}) {
    std::fill_n(p->grad.data<float>(), p->grad.num_elements(), 3.0f);
  }

  store_.zero_grads(stream_);

  EXPECT_EQ(test::to_floats(weight.grad), std::vector<float>(33, 0.0f));
  EXPECT_EQ(test::to_floats(norm.grad), std::vector<float>(31, 0.0f));
}

TEST_F(ParameterStoreTest, ForgottenGradientsAreZeroOnceTheyAreSettled) {
  // Products at both ends of the buffer are left to be overwritten; the one in the middle is not.
  std::vector<Parameter*> all;
  for (const char* name : {"first", "norm", "middle", "bias", "last"}) {
    all.push_back(&store_.add(whole(name, {33})));
    all.back()->gradient_is_product = std::string(name) != "norm" && std::string(name) != "bias";
  }
  store_.materialize(stream_, kSeed, 1);
  for (Parameter* p : all) std::fill_n(p->grad.data<float>(), 33, 3.0f);

  store_.forget_grads(stream_);

  const std::vector<float> zeros(33, 0.0f);
  for (size_t i : {1, 2, 3}) EXPECT_EQ(test::to_floats(all[i]->grad), zeros) << i;
  EXPECT_EQ(all[2]->begin_gradient(), Accumulate::yes);
  EXPECT_EQ(all[0]->begin_gradient(), Accumulate::no);
  EXPECT_EQ(all[0]->begin_gradient(), Accumulate::yes);  // the second product adds
  std::fill_n(all[0]->grad.data<float>(), 33, 5.0f);     // as the product would
  ParameterStore::settle_grads(stream_, store_.buffers().front());
  EXPECT_EQ(test::to_floats(all[0]->grad), std::vector<float>(33, 5.0f));
  EXPECT_EQ(test::to_floats(all[4]->grad), zeros);
}

}  // namespace
}  // namespace switchyard
