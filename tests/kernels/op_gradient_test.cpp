// The memory-bound ops: forward against double references, backward against central finite
// differences. With inputs near one and a step of 1e-2 the differences are good to about 1e-3.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/attention/rope.h"
#include "kernels/basic/activation.h"
#include "kernels/basic/elementwise.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/runtime/check.h"
#include "kernels/vocabulary/cross_entropy.h"
#include "kernels/vocabulary/embedding.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::inner_product;
using test::make_tensor;
using test::numeric_gradient;
using test::random_tensor;
using test::relative_error;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::Workspace;

constexpr int64_t kWidths[] = {1, 31, 32, 33, 257};

class NormWidthTest : public testing::TestWithParam<int64_t> {};

TEST_P(NormWidthTest, RmsNormAddsNormalisesAndDifferentiates) {
  Stream stream;
  Workspace workspace;
  const int64_t tokens = 3, hidden = GetParam();
  Tensor x = random_tensor({tokens, hidden}, 1), weight = random_tensor({hidden}, 3);
  const Tensor delta = random_tensor({tokens, hidden}, 2), dy = random_tensor({tokens, hidden}, 4);
  Tensor sum({tokens, hidden}, DType::f32), y({tokens, hidden}, DType::f32),
      rstd({tokens}, DType::f32);
  const float eps = 1e-2f;
  const auto loss = [&] {
    rms_norm_forward(stream, x, delta, weight, eps, sum, y, rstd);
    return inner_product(dy, y);
  };

  loss();
  for (int64_t t = 0; t < tokens; ++t) {
    double squares = 0.0;
    for (int64_t i = 0; i < hidden; ++i) squares += std::pow(sum.data<float>()[t * hidden + i], 2);
    const double expected = 1.0 / std::sqrt(squares / static_cast<double>(hidden) + eps);
    EXPECT_NEAR(rstd.data<float>()[t], expected, 1e-5 * expected);
    const int64_t last = t * hidden + hidden - 1;
    EXPECT_NEAR(y.data<float>()[last],
                sum.data<float>()[last] * expected * weight.data<float>()[hidden - 1], 1e-4);
  }
  // dx holds the gradient of the residual path, which does not pass the norm.
  Tensor dx = random_tensor({tokens, hidden}, 5), dweight = random_tensor({hidden}, 6);
  auto past = to_floats(dx), before = to_floats(dweight);
  rms_norm_backward(stream, workspace, dy, sum, weight, rstd, dx, dweight);
  auto by_x = to_floats(dx), by_weight = to_floats(dweight);
  for (size_t i = 0; i < past.size(); ++i) by_x[i] -= past[i];
  for (size_t i = 0; i < before.size(); ++i) by_weight[i] -= before[i];
  EXPECT_LT(relative_error(by_x, numeric_gradient(x, loss)), 5e-3);
  EXPECT_LT(relative_error(by_weight, numeric_gradient(weight, loss)), 5e-3);
}

TEST_P(NormWidthTest, LayerNormDifferentiates) {
  Stream stream;
  Workspace workspace;
  const int64_t tokens = 3, hidden = GetParam();
  Tensor x = random_tensor({tokens, hidden}, 1), weight = random_tensor({hidden}, 3),
         bias = random_tensor({hidden}, 7);
  const Tensor dy = random_tensor({tokens, hidden}, 4);
  Tensor y({tokens, hidden}, DType::f32), mean({tokens}, DType::f32), rstd({tokens}, DType::f32);
  const auto loss = [&] {
    layer_norm_forward(stream, x, {}, weight, bias, 1e-2f, {}, y, mean, rstd);
    return inner_product(dy, y);
  };

  loss();
  Tensor dx({tokens, hidden}, DType::f32), dweight({hidden}, DType::f32),
      dbias({hidden}, DType::f32);
  layer_norm_backward(stream, workspace, dy, x, weight, mean, rstd, dx, dweight, dbias);

  if (hidden > 1) {  // with one element per row the result is the bias for every x
    EXPECT_LT(relative_error(to_floats(dx), numeric_gradient(x, loss)), 5e-3);
    EXPECT_LT(relative_error(to_floats(dweight), numeric_gradient(weight, loss)), 5e-3);
  }
  EXPECT_LT(relative_error(to_floats(dbias), numeric_gradient(bias, loss)), 5e-3);
}

INSTANTIATE_TEST_SUITE_P(Widths, NormWidthTest, testing::ValuesIn(kWidths));

TEST(NormTest, ResultsDoNotDependOnTheNumberOfThreads) {
  const auto gradients = [](int threads) {
    const int former = omp_get_max_threads();
    omp_set_num_threads(threads);
    Stream stream;
    Workspace workspace;
    const Tensor x = random_tensor({513, 65}, 1), dy = random_tensor({513, 65}, 2),
                 weight = random_tensor({65}, 3);
    Tensor y(x.shape(), DType::f32), rstd({513}, DType::f32), dx(x.shape(), DType::f32),
        dweight({65}, DType::f32);
    rms_norm_forward(stream, x, {}, weight, 1e-5f, {}, y, rstd);
    rms_norm_backward(stream, workspace, dy, x, weight, rstd, dx, dweight);
    omp_set_num_threads(former);
    return to_floats(dweight);
  };

  EXPECT_EQ(gradients(1), gradients(2));
  EXPECT_EQ(gradients(1), gradients(3));
}

class ActivationTest : public testing::TestWithParam<Activation> {};

double reference(Activation activation, double x) {
  const double silu = x / (1.0 + std::exp(-x));
  switch (activation) {
    case Activation::swiglu:
    case Activation::silu:
      return silu;
    case Activation::gelu:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::relu2:
      return std::pow(std::max(x, 0.0), 2);
  }
  return 0.0;
}

TEST_P(ActivationTest, MatchesItsFormulaAndFiniteDifferences) {
  Stream stream;
  const Activation activation = GetParam();
  const int64_t rows = 3, ffn = 33, width = is_gated(activation) ? 2 * ffn : ffn;
  Tensor in = random_tensor({rows, width}, 1, DType::f32, 2.0f), scale = random_tensor({rows}, 2);
  // The inputs are farther from the kink of relu than the step.
  for (int64_t i = 0; i < in.num_elements(); ++i) {
    float& x = in.data<float>()[i];
    if (std::abs(x) < 0.02f) x = 0.02f;
  }
  const Tensor dout = random_tensor({rows, ffn}, 3);
  Tensor out({rows, ffn}, DType::f32), din(in.shape(), DType::f32), dscale({rows}, DType::f32);
  const auto loss = [&] {
    activation_forward(stream, activation, in, scale, out);
    return inner_product(dout, out);
  };

  loss();
  for (int64_t i = 0; i < ffn; ++i) {
    const double gate = is_gated(activation) ? in.data<float>()[ffn + i] : 1.0;
    const double expected =
        scale.data<float>()[0] * gate * reference(activation, in.data<float>()[i]);
    EXPECT_NEAR(out.data<float>()[i], expected, 2e-6 * (1.0 + std::abs(expected)));
  }
  activation_backward(stream, activation, dout, in, scale, din, dscale);
  EXPECT_LT(relative_error(to_floats(din), numeric_gradient(in, loss)), 5e-3);
  EXPECT_LT(relative_error(to_floats(dscale), numeric_gradient(scale, loss)), 5e-3);
}

// Device bodies approximate bf16 values, which may turn the rounding of one that lies half-way.
TEST_P(ActivationTest, Bf16IsTheRoundedResult) {
  constexpr double kRounding = 1.0 / 256;  // half a unit in the last of 8 bits
  Stream stream;
  const Activation activation = GetParam();
  const int64_t ffn = 1 << 12, width = is_gated(activation) ? 2 * ffn : ffn;
  Tensor x({1, width}, DType::f32), in({1, width}, DType::bf16);
  std::fill_n(x.data<float>(), width, 1.0f);  // the gate of swiglu's second half
  for (int64_t i = 0; i < ffn; ++i) x.data<float>()[i] = (static_cast<float>(i) - 2048.0f) / 128;
  x.data<float>()[0] = -1e15f;
  x.data<float>()[1] = 1e15f;
  cast(stream, x, in);
  const Tensor ones = make_tensor<float>({1}, {1.0f});
  Tensor out({1, ffn}, DType::bf16), din({1, width}, DType::bf16), dout({1, ffn}, DType::bf16);
  Tensor dscale({1}, DType::f32), f32_din({1, width}, DType::f32);
  Tensor rounded_in({1, width}, DType::f32), f32_dout({1, ffn}, DType::f32);
  std::fill_n(f32_dout.data<float>(), ffn, 1.0f);
  cast(stream, f32_dout, dout);
  cast(stream, in, rounded_in);

  activation_forward(stream, activation, in, {}, out);
  activation_backward(stream, activation, dout, in, ones, din, dscale);

  activation_backward(stream, activation, f32_dout, rounded_in, ones, f32_din, dscale);
  const std::vector<float> at = to_floats(in), y = to_floats(out), slope = to_floats(din);
  const std::vector<float> f32_slope = to_floats(f32_din);
  for (size_t i = 0; i < static_cast<size_t>(ffn); ++i) {
    const double expected = reference(activation, at[i]);
    if (std::isfinite(expected)) {
      EXPECT_NEAR(y[i], expected, 1.01 * kRounding * std::abs(expected) + 2e-6) << at[i];
    }
    if (i < 2) continue;  // f32 of GELU has no slope there
    EXPECT_NEAR(slope[i], f32_slope[i], 1.01 * kRounding * std::abs(f32_slope[i]) + 4e-6) << at[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, ActivationTest,
                         testing::Values(Activation::swiglu, Activation::gelu, Activation::relu,
                                         Activation::relu2, Activation::silu));

// Two shards of the vocabulary, as under tp = 2, must give the loss and gradient of one shard.
TEST(CrossEntropyTest, ShardsGiveTheLossAndGradientOfTheWhole) {
  Stream stream;
  constexpr int64_t kTokens = 4, kVocab = 33, kFirst = 20;
  Tensor logits = random_tensor({kTokens, kVocab}, 1, DType::f32, 3.0f);
  const Tensor targets = make_tensor<int32_t>({kTokens}, {0, 32, -1, 20});
  Tensor row_max({kTokens}, DType::f32), sum_exp({kTokens}, DType::f32),
      target_logit({kTokens}, DType::f32), losses({kTokens}, DType::f32);
  const auto loss = [&] {
    cross_entropy_forward(stream, logits, targets, 0, row_max, sum_exp, target_logit);
    cross_entropy_losses(stream, targets, row_max, sum_exp, target_logit, losses);
    Tensor total({1}, DType::f64);
    add_sum(stream, losses, 0.5, total);
    return total.data<double>()[0];
  };

  const double whole = loss();
  Tensor dlogits(logits.shape(), DType::f32);
  cross_entropy_backward(stream, logits, targets, 0, row_max, sum_exp, 0.5f, dlogits);

  EXPECT_LT(relative_error(to_floats(dlogits), numeric_gradient(logits, loss)), 5e-3);
  EXPECT_EQ(losses.data<float>()[2], 0.0f);
  double direct = 0.0;
  for (const int64_t t : {0, 1, 3}) {
    double total = 0.0;
    for (int64_t i = 0; i < kVocab; ++i) {
      total += std::exp(static_cast<double>(logits.data<float>()[t * kVocab + i]));
    }
    direct += std::log(total) - logits.data<float>()[t * kVocab + targets.data<int32_t>()[t]];
  }
  EXPECT_NEAR(whole, 0.5 * direct, 1e-5);

  // The sums of the shards refer to the maximum of the whole row and add up to its sum.
  loss();
  const auto shard = [&](int64_t first, int64_t count) {
    Tensor part({kTokens, count}, DType::f32);
    for (int64_t t = 0; t < kTokens; ++t) {
      copy(stream, logits.view().rows(t, 1).reshape({kVocab}).rows(first, count),
           part.view().rows(t, 1).reshape({count}));
    }
    return part;
  };
  const Tensor part = shard(kFirst, kVocab - kFirst), other = shard(0, kFirst);
  Tensor dpart(part.shape(), DType::f32);
  std::vector<float> sums(kTokens), target_logits(kTokens);
  for (const auto& [logits_of, first] : {std::pair(&part, kFirst), std::pair(&other, int64_t{0})}) {
    Tensor local_max({kTokens}, DType::f32), sum({kTokens}, DType::f32),
        target({kTokens}, DType::f32);
    cross_entropy_forward(stream, *logits_of, targets, first, local_max, sum, target);
    cross_entropy_rescale(stream, local_max, row_max, sum);
    for (size_t t = 0; t < kTokens; ++t) {
      sums[t] += to_floats(sum)[t];
      target_logits[t] += to_floats(target)[t];
    }
  }
  EXPECT_LT(relative_error(sums, to_floats(sum_exp)), 1e-6);
  EXPECT_EQ(target_logits, to_floats(target_logit));
  cross_entropy_backward(stream, part, targets, kFirst, row_max, sum_exp, 0.5f, dpart);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = kFirst; i < kVocab; ++i) {
      EXPECT_EQ(dpart.data<float>()[t * (kVocab - kFirst) + i - kFirst],
                dlogits.data<float>()[t * kVocab + i]);
    }
  }
}

TEST(CrossEntropyTest, ANanAmongTheLogitsReachesTheLoss) {
  Stream stream;
  Tensor logits = random_tensor({1, 9}, 1);
  logits.data<float>()[4] = NAN;
  const Tensor targets = make_tensor<int32_t>({1}, {3});
  Tensor row_max({1}, DType::f32), sum_exp({1}, DType::f32), target_logit({1}, DType::f32);
  Tensor losses({1}, DType::f32);

  cross_entropy_forward(stream, logits, targets, 0, row_max, sum_exp, target_logit);
  cross_entropy_losses(stream, targets, row_max, sum_exp, target_logit, losses);

  EXPECT_TRUE(std::isnan(to_floats(losses)[0]));
}

TEST(CrossEntropyTest, LogitsOfMinusInfinityAndEmptyShardsAddNothing) {
  Stream stream;
  constexpr int64_t kVocab = 1100;  // some threads see only logits of minus infinity
  std::vector<float> values(kVocab, -INFINITY);
  values[7] = values[1030] = 2.0f;
  const Tensor logits = make_tensor<float>({1, kVocab}, values), none({1, 0}, DType::f32);
  const Tensor targets = make_tensor<int32_t>({1}, {7});
  Tensor row_max({1}, DType::f32), sum_exp({1}, DType::f32), target_logit({1}, DType::f32);

  cross_entropy_forward(stream, logits, targets, 0, row_max, sum_exp, target_logit);
  EXPECT_EQ(to_floats(row_max)[0], 2.0f);
  EXPECT_EQ(to_floats(sum_exp)[0], 2.0f);
  EXPECT_EQ(to_floats(target_logit)[0], 2.0f);

  cross_entropy_forward(stream, none, targets, 0, row_max, sum_exp, target_logit);
  EXPECT_EQ(to_floats(sum_exp)[0], 0.0f);
}

TEST(EmbeddingTest, OtherRanksRowsAreZeroAndGradientsAddUp) {
  Workspace workspace;
  Stream stream;
  const Tensor ids = make_tensor<int32_t>({5}, {3, 4, 3, 0, 9});
  const Tensor table = random_tensor({3, 33}, 1);  // rows 3 to 5 of the whole
  Tensor out({5, 33}, DType::f32);

  embedding_forward(stream, ids, table, 3, out);

  const auto row = [&](const Tensor& tensor, int64_t r) {
    const auto all = to_floats(tensor);
    return std::vector<float>(all.begin() + r * 33, all.begin() + (r + 1) * 33);
  };
  EXPECT_EQ(row(out, 0), row(table, 0));
  EXPECT_EQ(row(out, 1), row(table, 1));
  EXPECT_EQ(row(out, 3), std::vector<float>(33, 0.0f));
  EXPECT_EQ(row(out, 4), std::vector<float>(33, 0.0f));

  const Tensor dout = random_tensor({5, 33}, 2);
  Tensor dtable({3, 33}, DType::f32);
  embedding_backward(stream, workspace, ids, dout, 3, dtable);
  for (int64_t i = 0; i < 33; ++i) {
    EXPECT_EQ(dtable.data<float>()[i], dout.data<float>()[i] + dout.data<float>()[66 + i]);
    EXPECT_EQ(dtable.data<float>()[33 + i], dout.data<float>()[33 + i]);
    EXPECT_EQ(dtable.data<float>()[66 + i], 0.0f);
  }
}

TEST(RopeTest, RotatesHalvesAndItsBackwardIsItsTranspose) {
  Stream stream;
  constexpr int64_t kBatch = 2, kHeads = 3, kKvHeads = 1, kSeqLen = 5, kDim = 6, kFirst = 2;
  const RopeTable table =
      make_rope_table(stream, kSeqLen + kFirst, {.head_dim = kDim, .theta = 100.0});
  const Tensor qkv = random_tensor({kBatch * kSeqLen, (kHeads + 2 * kKvHeads) * kDim}, 1);
  Tensor q({kBatch, kHeads, kSeqLen, kDim}, DType::f32),
      k({kBatch, kKvHeads, kSeqLen, kDim}, DType::f32), v(k.shape(), DType::f32);

  split_qkv_forward(stream, qkv, table.cos, table.sin, kFirst, q, k, v);

  // Batch 1, head 2, position 3: element 1 turns with element 1 + kDim / 2.
  const double angle = (3 + kFirst) * std::pow(100.0, -2.0 * 1 / kDim);
  const float* row = qkv.data<float>() + ((kSeqLen + 3) * 5 + 2) * kDim;
  const float* rotated = q.data<float>() + ((1 * kHeads + 2) * kSeqLen + 3) * kDim;
  EXPECT_NEAR(rotated[1], row[1] * std::cos(angle) - row[4] * std::sin(angle), 1e-5);
  EXPECT_NEAR(rotated[4], row[4] * std::cos(angle) + row[1] * std::sin(angle), 1e-5);

  // <split(x), y> = <x, split^T(y)>, at the positions that training uses.
  split_qkv_forward(stream, qkv, table.cos, table.sin, 0, q, k, v);
  const Tensor dq = random_tensor(q.shape(), 2), dk = random_tensor(k.shape(), 3),
               dv = random_tensor(v.shape(), 4);
  Tensor dqkv(qkv.shape(), DType::f32);
  split_qkv_backward(stream, dq, dk, dv, table.cos, table.sin, dqkv);
  EXPECT_NEAR(inner_product(q, dq) + inner_product(k, dk) + inner_product(v, dv),
              inner_product(qkv, dqkv), 1e-4);
}

TEST(RopeTest, TurnsTheFirstChannelsAndCopiesTheOthers) {
  Stream stream;
  constexpr int64_t kDim = 7, kPosition = 3;
  const Tensor cos = make_tensor<float>({kPosition + 1, 2}, {0, 0, 0, 0, 0, 0, 0.5f, 1.5f});
  const Tensor sin = make_tensor<float>({kPosition + 1, 2}, {0, 0, 0, 0, 0, 0, 0.25f, 0.25f});
  const Tensor qkv = make_tensor<float>({1, 3 * kDim}, {1,  2,  3,  4,  5,  6,  7,   //
                                                        -1, -2, -3, -4, -5, -6, -7,  //
                                                        10, 20, 30, 40, 50, 60, 70});
  Tensor q({1, 1, 1, kDim}, DType::f32), k(q.shape(), DType::f32), v(q.shape(), DType::f32);

  split_qkv_forward(stream, qkv, cos, sin, kPosition, q, k, v);

  // Channels 0 and 2 are a pair, and so are 1 and 3.
  EXPECT_EQ(to_floats(q), (std::vector<float>{-0.25f, 2.0f, 1.75f, 6.5f, 5, 6, 7}));
  EXPECT_EQ(to_floats(k), (std::vector<float>{0.25f, -2.0f, -1.75f, -6.5f, -5, -6, -7}));
  EXPECT_EQ(to_floats(v), (std::vector<float>{10, 20, 30, 40, 50, 60, 70}));
}

TEST(RopeTest, RefusesAnOddWidthByName) {
  Stream stream;
  EXPECT_THROW(
      {
        try {
          make_rope_table(stream, 4, {.head_dim = 7});
        } catch (const Error& error) {
          EXPECT_NE(std::string(error.what()).find("head_dim"), std::string::npos);
          throw;
        }
      },
      Error);
}

TEST(ElementwiseTest, BiasesAndSums) {
  Stream stream;
  constexpr int64_t kRows = 33, kWidth = 257;
  Tensor y = random_tensor({kRows, kWidth}, 1);
  const auto before = to_floats(y);
  const Tensor bias = random_tensor({kWidth}, 2);
  Tensor dbias({kWidth}, DType::f32);

  add_bias(stream, bias, y);
  EXPECT_EQ(y.data<float>()[kWidth + 3], before[kWidth + 3] + bias.data<float>()[3]);

  test::Workspace workspace;
  add_bias_backward(stream, workspace, y, dbias);
  double column = 0.0;
  for (int64_t r = 0; r < kRows; ++r) column += y.data<float>()[r * kWidth + 256];
  EXPECT_NEAR(dbias.data<float>()[256], column, 1e-4);

  double squares = 0.0;
  for (const float v : to_floats(y)) squares += static_cast<double>(v) * v;
  Tensor total = make_tensor<double>({1}, {1.0});
  add_sum_of_squares(stream, y, 2.0, total);
  EXPECT_NEAR(total.data<double>()[0], 1.0 + 2.0 * squares, 1e-9 * squares);

  Tensor columns = make_tensor<double>({kWidth}, std::vector<double>(kWidth, 3.0));
  add_column_sums(stream, y, columns);
  EXPECT_NEAR(columns.data<double>()[256], 3.0 + column, 1e-12 * std::abs(column));
}

TEST(ElementwiseTest, CastRoundsToNearestEven) {
  Stream stream;
  const Tensor x = make_tensor<float>({4}, {1.0f, 1.00390625f, 1.01171875f, NAN});
  Tensor y({4}, DType::bf16);

  cast(stream, x, y);

  const auto rounded = to_floats(y);
  EXPECT_EQ(rounded[0], 1.0f);
  EXPECT_EQ(rounded[1], 1.0f);       // half way: to the even mantissa below
  EXPECT_EQ(rounded[2], 1.015625f);  // half way: to the even mantissa above
  EXPECT_TRUE(std::isnan(rounded[3]));
}

}  // namespace
}  // namespace switchyard
