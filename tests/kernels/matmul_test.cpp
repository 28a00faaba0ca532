#include "kernels/linear/matmul.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cpu/onednn_matmul.h"
#include "kernels/runtime/check.h"
#include "tests/support/bf16_scope.h"
#include "tests/support/method_scope.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::relative_error;
using test::Stream;
using test::Tensor;
using test::to_floats;

constexpr int64_t kSizes[] = {1, 31, 32, 33, 257};

// Relative to the greatest element. f32: sums of up to 1,100 terms; bf16: half a step of 8 bits.
double tolerance(DType out) { return out == DType::f32 ? 3e-6 : 4.1e-3; }

class ThreadCount {
 public:
  explicit ThreadCount(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadCount() { omp_set_num_threads(before_); }

 private:
  int before_;
};

// c + op(a) op(b) in double; op(a) op(b) if c is empty.
std::vector<float> reference(ConstTensorView a, Transpose transpose_a, ConstTensorView b,
                             Transpose transpose_b, const std::vector<float>& c = {}) {
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const int64_t m = a.dim(ta), k = a.dim(1 - ta), n = b.dim(1 - tb);
  const std::vector<float> x = to_floats(a), y = to_floats(b);
  std::vector<float> product(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const auto at = static_cast<size_t>(i * n + j);
      double sum = c.empty() ? 0.0 : c[at];
      for (int64_t l = 0; l < k; ++l) {
        sum += static_cast<double>(x[static_cast<size_t>(ta ? l * m + i : i * k + l)]) *
               y[static_cast<size_t>(tb ? j * k + l : l * n + j)];
      }
      product[at] = static_cast<float>(sum);
    }
  }
  return product;
}

Shape stored(int64_t rows, int64_t cols, Transpose transpose) {
  return transpose == Transpose::yes ? Shape{cols, rows} : Shape{rows, cols};
}

// Of operands and results, and how bf16 is multiplied.
struct Dtypes {
  DType in, out;
  Bf16Method method = Bf16Method::widened;
  std::optional<ExpertProductMethod> expert_products = std::nullopt;
};
constexpr Bf16Method kNative = Bf16Method::native;

// Runs the tests of a suite by the method of their parameter.
template <class Parameter>
class MethodTest : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    const Bf16Method method = std::get<0>(this->GetParam()).method;
    SWITCHYARD_NEEDS_METHOD(method);
    scope_.emplace(method);
  }

 private:
  std::optional<test::Bf16Scope> scope_;
};

class MatmulTest : public MethodTest<std::tuple<Dtypes, Transpose, Transpose, Accumulate>> {
 protected:
  void expect_equal_to_reference(int64_t m, int64_t n, int64_t k) {
    const auto [dtypes, transpose_a, transpose_b, accumulate] = GetParam();
    const Tensor a = random_tensor(stored(m, k, transpose_a), 1, dtypes.in);
    const Tensor b = random_tensor(stored(k, n, transpose_b), 2, dtypes.in);
    Tensor c = random_tensor({m, n}, 3, dtypes.out);
    const std::vector<float> expected =
        reference(a, transpose_a, b, transpose_b,
                  accumulate == Accumulate::yes ? to_floats(c) : std::vector<float>{});

    matmul(stream_, a, transpose_a, b, transpose_b, accumulate, c);

    // A single element may cancel to almost zero: the scale is that of its terms, not of its value.
    std::vector<float> actual = to_floats(c), wanted = expected;
    actual.push_back(std::sqrt(static_cast<float>(k)));
    wanted.push_back(std::sqrt(static_cast<float>(k)));
    EXPECT_LT(relative_error(actual, wanted), tolerance(dtypes.out))
        << m << " x " << n << " x " << k;
  }

  Stream stream_;
};

TEST_P(MatmulTest, EqualsTheDoubleReferenceForEverySize) {
  for (const int64_t m : kSizes) {
    for (const int64_t n : kSizes) expect_equal_to_reference(m, n, 33);
  }
  for (const int64_t k : kSizes) expect_equal_to_reference(33, 31, k);
}

TEST_P(MatmulTest, EqualsTheDoubleReferenceForFewRows) {
  for (int64_t m = 1; m <= 9; ++m) {
    for (const int64_t n : {1, 7, 66, 130}) expect_equal_to_reference(m, n, 33);
    for (const int64_t k : {1, 16, 47, 576}) expect_equal_to_reference(m, 65, k);
  }
}

TEST_P(MatmulTest, SumsAreRightAcrossBlocksOfTheInnerDimension) {
  expect_equal_to_reference(33, 32, 1100);
  expect_equal_to_reference(257, 17, 1100);  // Two blocks of rows share a transposed b.
}

// The CPU transposes a b that is too large to be kept whole part by part.
TEST_P(MatmulTest, SumsAreRightForALargeTransposedOperand) {
  const auto [dtypes, transpose_a, transpose_b, accumulate] = GetParam();
  if (dtypes.in != DType::f32 || transpose_b == Transpose::no) GTEST_SKIP() << "kept otherwise";
  expect_equal_to_reference(64, 480, 4400);
}

TEST_P(MatmulTest, WithoutAnInnerDimensionTheProductIsZero) {
  const auto [dtypes, transpose_a, transpose_b, accumulate] = GetParam();
  const Tensor a(stored(3, 0, transpose_a), dtypes.in);
  const Tensor b(stored(0, 5, transpose_b), dtypes.in);
  Tensor c = random_tensor({3, 5}, 3, dtypes.out);
  const std::vector<float> expected =
      accumulate == Accumulate::yes ? to_floats(c) : std::vector<float>(15, 0.0f);

  matmul(stream_, a, transpose_a, b, transpose_b, accumulate, c);

  EXPECT_EQ(to_floats(c), expected);
}

TEST_P(MatmulTest, AcceptsNoRows) {
  const auto [dtypes, transpose_a, transpose_b, accumulate] = GetParam();
  const Tensor a(stored(0, 7, transpose_a), dtypes.in);
  const Tensor b = random_tensor(stored(7, 5, transpose_b), 2, dtypes.in);
  Tensor c({0, 5}, dtypes.out);

  EXPECT_NO_THROW(matmul(stream_, a, transpose_a, b, transpose_b, accumulate, c));
}

TEST_P(MatmulTest, DoesNotDependOnTheNumberOfThreads) {
  SWITCHYARD_CPU_ONLY("threads are the CPU\'s");
  const auto [dtypes, transpose_a, transpose_b, accumulate] = GetParam();
  const Tensor a = random_tensor(stored(300, 700, transpose_a), 1, dtypes.in);
  const Tensor b = random_tensor(stored(700, 520, transpose_b), 2, dtypes.in);
  std::vector<std::vector<float>> results;

  for (const int threads : {1, 2, 3}) {
    const ThreadCount scope(threads);
    Tensor c = random_tensor({300, 520}, 3, dtypes.out);
    matmul(stream_, a, transpose_a, b, transpose_b, accumulate, c);
    results.push_back(to_floats(c));
  }

  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

INSTANTIATE_TEST_SUITE_P(All, MatmulTest,
                         testing::Combine(testing::Values(Dtypes{DType::f32, DType::f32},
                                                          Dtypes{DType::bf16, DType::bf16},
                                                          Dtypes{DType::bf16, DType::f32},
                                                          Dtypes{DType::bf16, DType::bf16, kNative},
                                                          Dtypes{DType::bf16, DType::f32, kNative}),
                                          testing::Values(Transpose::no, Transpose::yes),
                                          testing::Values(Transpose::no, Transpose::yes),
                                          testing::Values(Accumulate::no, Accumulate::yes)));

// A step of decoding: what a sequence gets does not depend on the others or on the threads.
TEST(FewRowsTest, EveryRowIsTheProductOfItselfAlone) {
  SWITCHYARD_CPU_ONLY("a guarantee of the CPU's products");
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor a = random_tensor({8, 70}, 1, dtype), b = random_tensor({200, 70}, 2, dtype);
    for (const int threads : {1, 2, 3}) {
      const ThreadCount scope(threads);
      for (int64_t m = 1; m <= 8; ++m) {
        Tensor together({m, 200}, dtype), alone({1, 200}, dtype);
        matmul(stream, a.view().rows(0, m), Transpose::no, b, Transpose::yes, Accumulate::no,
               together);
        matmul(stream, a.view().rows(m - 1, 1), Transpose::no, b, Transpose::yes, Accumulate::no,
               alone);
        EXPECT_EQ(to_floats(together.view().rows(m - 1, 1)), to_floats(alone)) << m << " rows";
      }
    }
  }
}

TEST(MatmulErrorTest, NamesTheInnerDimensionsThatDiffer) {
  Stream stream;
  const Tensor a({2, 3}, DType::f32), b({4, 5}, DType::f32);
  Tensor c({2, 5}, DType::f32);

  EXPECT_THAT([&] { matmul(stream, a, Transpose::no, b, Transpose::no, Accumulate::no, c); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("inner dimensions differ")));
}

// Both ways to multiply bf16 must agree.
TEST(Bf16BlockTest, NativeAndWidenedProductsAgree) {
  SWITCHYARD_CPU_ONLY("oneDNN alone");
  SWITCHYARD_NEEDS_METHOD(kNative);
  for (const Transpose transpose : {Transpose::no, Transpose::yes}) {
    for (const DType out : {DType::f32, DType::bf16}) {
      const Tensor a = random_tensor(stored(33, 600, transpose), 1, DType::bf16);
      const Tensor b = random_tensor(stored(600, 31, transpose), 2, DType::bf16);
      Tensor native = random_tensor({33, 31}, 3, out), widened = random_tensor({33, 31}, 3, out);
      MatrixProduct product{.m = 33,
                            .n = 31,
                            .k = 600,
                            .dtype = DType::bf16,
                            .a = {a.view().raw(), a.view().dim(1), transpose},
                            .b = {b.view().raw(), b.view().dim(1), transpose},
                            .c = native.view().raw(),
                            .c_stride = 31,
                            .c_dtype = out,
                            .accumulate = Accumulate::yes};

      compute_block_native_bf16(product);
      product.c = widened.view().raw();
      compute_block_widened_bf16(product);

      EXPECT_LT(relative_error(to_floats(native), to_floats(widened)), 2 * tolerance(out));
    }
  }
}

TEST(Bf16MethodTest, ProductsAreThoseOfTheMethodThatWasSet) {
  SWITCHYARD_CPU_ONLY("oneDNN alone");
  SWITCHYARD_NEEDS_METHOD(kNative);
  const Tensor a = random_tensor({33, 600}, 1, DType::bf16);
  const Tensor b = random_tensor({600, 31}, 2, DType::bf16);
  Tensor c({33, 31}, DType::f32), expected({33, 31}, DType::f32);
  MatrixProduct product{.m = 33,
                        .n = 31,
                        .k = 600,
                        .dtype = DType::bf16,
                        .a = {a.view().raw(), 600},
                        .b = {b.view().raw(), 31},
                        .c = expected.view().raw(),
                        .c_stride = 31,
                        .c_dtype = DType::f32};
  using Compute = void(const MatrixProduct&);
  const std::pair<Bf16Method, Compute*> methods[] = {
      {Bf16Method::native, &compute_block_native_bf16},
      {Bf16Method::widened, &compute_block_widened_bf16}};
  std::vector<std::vector<float>> results;
  for (const auto& [method, compute_by_method] : methods) {
    const test::Bf16Scope scope(method);
    compute_by_method(product);
    Stream stream;
    matmul(stream, a, Transpose::no, b, Transpose::no, Accumulate::no, c);
    EXPECT_EQ(bf16_method(), method);
    EXPECT_EQ(to_floats(c), to_floats(expected)) << to_string(method);
    results.push_back(to_floats(c));
  }
  EXPECT_NE(results[0], results[1]) << "the products cannot tell the methods apart";
}

TEST(MethodsTest, TheFastestIsChosenOfThoseThatAreThere) {
  using Seconds = MethodSeconds<Bf16Method>;
  constexpr double kNever = Seconds::kNever;

  EXPECT_EQ((Seconds{{1.0, 2.0}}.fastest()), Bf16Method::native);
  EXPECT_EQ((Seconds{{2.0, 1.0}}.fastest()), Bf16Method::widened);
  EXPECT_EQ((Seconds{{kNever, 0.0}}.fastest()), Bf16Method::widened);
  EXPECT_FALSE((Seconds{{kNever, 0.0}}.has(Bf16Method::native)));
  EXPECT_TRUE((Seconds{{kNever, 0.0}}.has(Bf16Method::widened)));
}

TEST(Bf16MethodTest, BothMethodsAreMeasured) {
  SWITCHYARD_CPU_ONLY("oneDNN alone");
  SWITCHYARD_NEEDS_METHOD(kNative);
  const MethodSeconds<Bf16Method> measured = measure_bf16_methods();
  for (const double seconds : measured.seconds) {
    EXPECT_GT(seconds, 0.0);
    EXPECT_LT(seconds, 1.0);
  }
}

TEST(MatrixProductTest, StridedBlocksLeaveTheirSurroundingsAlone) {
  SWITCHYARD_CPU_ONLY("oneDNN alone");
  const Tensor a = random_tensor({40, 50}, 1), b = random_tensor({50, 60}, 2);
  Tensor c({40, 60}, DType::f32);
  const MatrixProduct product{.m = 20,
                              .n = 17,
                              .k = 50,
                              .dtype = DType::f32,
                              .a = {a.data<float>() + 10 * 50, 50},
                              .b = {b.data<float>() + 5, 60},
                              .c = c.data<float>() + 10 * 60 + 5,
                              .c_stride = 60,
                              .c_dtype = DType::f32};

  compute(product);

  const std::vector<float> all = reference(a, Transpose::no, b, Transpose::no);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = 0; j < 60; ++j) {
      const bool inside = i >= 10 && i < 30 && j >= 5 && j < 22;
      EXPECT_NEAR(c.data<float>()[i * 60 + j], inside ? all[static_cast<size_t>(i * 60 + j)] : 0.0,
                  1e-4);
    }
  }
}

// The dtype, and the widths of input and output: with and without every row aligned to 16 bytes;
// one tile of a device's kernel or several, of which the last is not full. A CUDA device may have
// several methods.
class GroupedLinearTest : public MethodTest<std::tuple<Dtypes, std::pair<int64_t, int64_t>>> {
 protected:
  void SetUp() override {
    MethodTest::SetUp();
    const std::optional<ExpertProductMethod> method = std::get<0>(GetParam()).expert_products;
    if (!method) return;
    if (test::device().kind == DeviceKind::cpu) GTEST_SKIP() << "methods of CUDA devices";
    if (!has_expert_product_method(test::device(), *method)) {
      GTEST_SKIP() << "the libraries of this method are not there, or the device cannot run them";
    }
    scope_.emplace(method);
  }

  static DType dtype() { return std::get<0>(GetParam()).in; }
  const int64_t in_ = std::get<1>(GetParam()).first, out_ = std::get<1>(GetParam()).second;

  // Some experts have no rows (first, last and in between), some more than one block of rows.
  const std::vector<int64_t> row_offsets_{0, 0, 1, 32, 32, 64, 97, 354, 954, 954};
  const int64_t experts_ = std::ssize(row_offsets_) - 1;
  const int64_t rows_ = row_offsets_.back();
  const Tensor x_ = random_tensor({rows_, in_}, 1, dtype());
  const Tensor dy_ = random_tensor({rows_, out_}, 2, dtype());
  const Tensor weight_ = random_tensor({experts_, out_, in_}, 3, dtype());
  Stream stream_;
  std::optional<test::ExpertProductScope> scope_;

  ConstTensorView weight_of(int64_t e) const {
    return weight_.view().rows(e, 1).reshape({out_, in_});
  }
  ConstTensorView rows_of(ConstTensorView x, int64_t e) const {
    const auto i = static_cast<size_t>(e);
    return x.rows(row_offsets_[i], row_offsets_[i + 1] - row_offsets_[i]);
  }

  // Joins the rows of reference(x, weight) of one expert after the other.
  std::vector<float> reference_rows(ConstTensorView x, Transpose transpose_weight) const {
    std::vector<float> rows;
    for (int64_t e = 0; e < experts_; ++e) {
      const std::vector<float> part =
          reference(rows_of(x, e), Transpose::no, weight_of(e), transpose_weight);
      rows.insert(rows.end(), part.begin(), part.end());
    }
    return rows;
  }
};

TEST_P(GroupedLinearTest, ForwardAppliesEachExpertsWeightToItsRows) {
  Tensor y({rows_, out_}, dtype());

  grouped_linear_forward(stream_, x_, weight_, row_offsets_, y);

  EXPECT_LT(relative_error(to_floats(y), reference_rows(x_, Transpose::yes)), tolerance(dtype()));
}

TEST_P(GroupedLinearTest, BackwardInputAppliesTheTransposedWeight) {
  Tensor dx({rows_, in_}, dtype());

  grouped_linear_backward_input(stream_, dy_, weight_, row_offsets_, dx);

  EXPECT_LT(relative_error(to_floats(dx), reference_rows(dy_, Transpose::no)), tolerance(dtype()));
}

TEST_P(GroupedLinearTest, BackwardWeightAddsEachExpertsOuterProducts) {
  Tensor dweight = random_tensor({experts_, out_, in_}, 4);
  std::vector<float> expected;
  for (int64_t e = 0; e < experts_; ++e) {
    const std::vector<float> part = reference(rows_of(dy_, e), Transpose::yes, rows_of(x_, e),
                                              Transpose::no, to_floats(dweight.view().rows(e, 1)));
    expected.insert(expected.end(), part.begin(), part.end());
  }

  grouped_linear_backward_weight(stream_, dy_, x_, row_offsets_, Accumulate::yes, dweight);

  EXPECT_LT(relative_error(to_floats(dweight), expected), tolerance(DType::f32));
}

TEST_P(GroupedLinearTest, BackwardWeightOverwritesWithTheBitsThatItAddsToZeroes) {
  Tensor overwritten = random_tensor({experts_, out_, in_}, 4);
  Tensor added({experts_, out_, in_}, DType::f32);

  grouped_linear_backward_weight(stream_, dy_, x_, row_offsets_, Accumulate::no, overwritten);
  grouped_linear_backward_weight(stream_, dy_, x_, row_offsets_, Accumulate::yes, added);

  EXPECT_EQ(to_floats(overwritten), to_floats(added));
}

TEST_P(GroupedLinearTest, DoesNotDependOnTheNumberOfThreads) {
  SWITCHYARD_CPU_ONLY("threads are the CPU\'s");
  std::vector<std::vector<float>> results;

  for (const int threads : {1, 2, 3}) {
    const ThreadCount scope(threads);
    Tensor y({rows_, out_}, dtype()), dx({rows_, in_}, dtype());
    Tensor dweight({experts_, out_, in_}, DType::f32);
    grouped_linear_forward(stream_, x_, weight_, row_offsets_, y);
    grouped_linear_backward_input(stream_, dy_, weight_, row_offsets_, dx);
    grouped_linear_backward_weight(stream_, dy_, x_, row_offsets_, Accumulate::yes, dweight);
    std::vector<float> all = to_floats(y);
    for (const Tensor* part : {&dx, &dweight}) {
      const std::vector<float> values = to_floats(*part);
      all.insert(all.end(), values.begin(), values.end());
    }
    results.push_back(std::move(all));
  }

  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

TEST_P(GroupedLinearTest, AcceptsNoRowsAtAll) {
  const std::vector<int64_t> row_offsets(static_cast<size_t>(experts_ + 1), 0);
  const Tensor x({0, in_}, dtype()), dy({0, out_}, dtype());
  Tensor y({0, out_}, dtype());
  Tensor dweight = random_tensor({experts_, out_, in_}, 4);
  const std::vector<float> before = to_floats(dweight);

  grouped_linear_forward(stream_, x, weight_, row_offsets, y);
  grouped_linear_backward_weight(stream_, dy, x, row_offsets, Accumulate::yes, dweight);

  EXPECT_EQ(to_floats(dweight), before);

  grouped_linear_backward_weight(stream_, dy, x, row_offsets, Accumulate::no, dweight);

  EXPECT_EQ(to_floats(dweight), std::vector<float>(before.size(), 0.0f));
}

TEST_P(GroupedLinearTest, RejectsOffsetsThatDoNotCoverTheRows) {
  Tensor y({rows_, out_}, dtype());
  std::vector<int64_t> row_offsets = row_offsets_;
  row_offsets.back() -= 1;

  EXPECT_THAT([&] { grouped_linear_forward(stream_, x_, weight_, row_offsets, y); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("row_offsets")));
}

INSTANTIATE_TEST_SUITE_P(
    All, GroupedLinearTest,
    testing::Combine(testing::Values(Dtypes{DType::f32, DType::f32},
                                     Dtypes{DType::bf16, DType::bf16},
                                     Dtypes{DType::bf16, DType::bf16, kNative}),
                     testing::Values(std::pair(33, 65), std::pair(32, 64), std::pair(200, 264))));

constexpr Dtypes by(ExpertProductMethod method) {
  return {DType::bf16, DType::bf16, Bf16Method::widened, method};
}
INSTANTIATE_TEST_SUITE_P(Methods, GroupedLinearTest,
                         testing::Combine(testing::Values(by(ExpertProductMethod::cublas_lt),
                                                          by(ExpertProductMethod::cutlass),
                                                          by(ExpertProductMethod::cublas),
                                                          by(ExpertProductMethod::streams)),
                                          testing::Values(std::pair(33, 65), std::pair(32, 64),
                                                          std::pair(200, 264))));

}  // namespace
}  // namespace switchyard
