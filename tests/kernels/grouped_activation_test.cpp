#include "kernels/linear/grouped_activation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/linear/matmul.h"
#include "tests/support/method_scope.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::relative_error;
using test::Stream;
using test::Tensor;
using test::to_floats;
using test::Workspace;

struct Way {
  std::string name;
  DType dtype;
  std::optional<ExpertProductMethod> method;
};

// The dtype and method, the activation, and the widths: with and without every row aligned to 16
// bytes; one tile of a device's kernel, or several, of which the last is not full.
class GroupedActivationTest
    : public testing::TestWithParam<std::tuple<Way, Activation, std::pair<int64_t, int64_t>>> {
 protected:
  void SetUp() override {
    const auto& method = std::get<0>(GetParam()).method;
    if (!method) return;
    if (test::device().kind == DeviceKind::cpu) GTEST_SKIP() << "methods of CUDA devices";
    if (!has_expert_product_method(test::device(), *method)) {
      GTEST_SKIP() << "the libraries of this method are not there, or the device cannot run them";
    }
    scope_.emplace(method);
  }

  // Of the two ops of which each op here is made, by the methods that fuse nothing.
  struct Results {
    Tensor up, act, dup, dscale;
  };
  Results empty() const {
    return {.up = random_tensor({rows_, up_width_}, 5, dtype()),  // overwritten
            .act = random_tensor({rows_, ffn_}, 6, dtype()),
            .dup = random_tensor({rows_, up_width_}, 7, dtype()),
            .dscale = random_tensor({rows_}, 8)};
  }
  Results expected(ConstTensorView scale) {
    const test::ExpertProductScope scope(ExpertProductMethod::streams);
    Results r = empty();
    Tensor dact({rows_, ffn_}, dtype());
    grouped_linear_forward(stream_, x_, up_weight_, row_offsets_, r.up);
    activation_forward(stream_, activation(), r.up, scale, r.act);
    grouped_linear_backward_input(stream_, dy_, down_weight_, row_offsets_, dact);
    activation_backward(stream_, activation(), dact, r.up, scale, r.dup,
                        scale ? r.dscale.view() : TensorView());
    return r;
  }
  void forward(ConstTensorView scale, Results& r) {
    grouped_activation_forward(stream_, activation(), x_, up_weight_, row_offsets_, scale, r.up,
                               r.act);
  }
  //   up  the activation's input
  void backward(ConstTensorView scale, ConstTensorView up, Results& r) {
    grouped_activation_backward(stream_, workspace_, activation(), dy_, down_weight_, row_offsets_,
                                up, scale, r.dup, scale ? r.dscale.view() : TensorView(), r.act);
  }
  std::vector<float> activated(ConstTensorView up, ConstTensorView scale) {
    Tensor act({rows_, ffn_}, dtype());
    activation_forward(stream_, activation(), up, scale, act);
    return to_floats(act);
  }

  static DType dtype() { return std::get<0>(GetParam()).dtype; }
  static Activation activation() { return std::get<1>(GetParam()); }
  // Values of up are rounded to bf16, and a gradient may change as much with each.
  static double tolerance() { return dtype() == DType::f32 ? 1e-5 : 2e-2; }

  const int64_t width_ = std::get<2>(GetParam()).first, ffn_ = std::get<2>(GetParam()).second;
  const int64_t up_width_ = ffn_ * (is_gated(activation()) ? 2 : 1);
  // Some experts have no rows (first, last and in between), some more than one block of rows.
  const std::vector<int64_t> row_offsets_{0, 0, 1, 33, 33, 163, 163};
  const int64_t experts_ = std::ssize(row_offsets_) - 1, rows_ = row_offsets_.back();
  const Tensor x_ = random_tensor({rows_, width_}, 1, dtype());
  const Tensor dy_ = random_tensor({rows_, width_}, 2, dtype());
  const Tensor up_weight_ = random_tensor({experts_, up_width_, width_}, 3, dtype(), 0.1f);
  const Tensor down_weight_ = random_tensor({experts_, width_, ffn_}, 4, dtype(), 0.1f);
  const Tensor scale_ = random_tensor({rows_}, 9);
  Stream stream_;
  Workspace workspace_;
  std::optional<test::ExpertProductScope> scope_;
};

TEST_P(GroupedActivationTest, ForwardIsTheProductAndItsWeightedActivation) {
  const Results wanted = expected(scale_);
  Results r = empty();

  forward(scale_, r);

  EXPECT_LT(relative_error(to_floats(r.up), to_floats(wanted.up)), tolerance());
  EXPECT_LT(relative_error(to_floats(r.act), to_floats(wanted.act)), tolerance());
  EXPECT_EQ(to_floats(r.act), activated(r.up, scale_));
}

TEST_P(GroupedActivationTest, BackwardIsTheGradientOfTheActivationsInput) {
  const Results wanted = expected(scale_);
  Results r = empty();

  backward(scale_, wanted.up, r);

  EXPECT_LT(relative_error(to_floats(r.dup), to_floats(wanted.dup)), tolerance());
  EXPECT_LT(relative_error(to_floats(r.dscale), to_floats(wanted.dscale)), tolerance());
  EXPECT_EQ(to_floats(r.act), activated(wanted.up, scale_));
}

// A run that is resumed on another device, or whose blocks are recomputed, may mix methods.
TEST_P(GroupedActivationTest, BackwardOfTheOpsOwnForwardIsThatOfTheSeparateOps) {
  Results r = empty(), wanted = empty();
  forward(scale_, r);
  {
    const test::ExpertProductScope scope(ExpertProductMethod::streams);
    Tensor dact({rows_, ffn_}, dtype());
    grouped_linear_backward_input(stream_, dy_, down_weight_, row_offsets_, dact);
    activation_backward(stream_, activation(), dact, r.up, scale_, wanted.dup, wanted.dscale);
  }

  backward(scale_, r.up, r);

  EXPECT_LT(relative_error(to_floats(r.dup), to_floats(wanted.dup)), tolerance());
  EXPECT_LT(relative_error(to_floats(r.dscale), to_floats(wanted.dscale)), tolerance());
}

TEST_P(GroupedActivationTest, WithoutScalesRowsAreNotWeighted) {
  const Results wanted = expected({});
  Results r = empty();

  forward({}, r);
  EXPECT_EQ(to_floats(r.act), activated(r.up, {}));
  backward({}, wanted.up, r);

  EXPECT_LT(relative_error(to_floats(r.dup), to_floats(wanted.dup)), tolerance());
  EXPECT_EQ(to_floats(r.act), to_floats(wanted.act));
}

TEST_P(GroupedActivationTest, RepeatsBitForBit) {
  Results first = empty(), second = empty();

  for (Results* r : {&first, &second}) {
    forward(scale_, *r);
    backward(scale_, first.up, *r);
  }

  EXPECT_EQ(to_floats(second.up), to_floats(first.up));
  EXPECT_EQ(to_floats(second.act), to_floats(first.act));
  EXPECT_EQ(to_floats(second.dup), to_floats(first.dup));
  EXPECT_EQ(to_floats(second.dscale), to_floats(first.dscale));
}

TEST_P(GroupedActivationTest, RejectsOffsetsThatDoNotCoverTheRows) {
  std::vector<int64_t> row_offsets = row_offsets_;
  for (int64_t& offset : row_offsets) offset = std::min(offset, rows_ - 1);
  Results r = empty();

  EXPECT_THAT(
      [&] {
        grouped_activation_forward(stream_, activation(), x_, up_weight_, row_offsets, scale_, r.up,
                                   r.act);
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("row_offsets")));
}

std::string name_of(
    const testing::TestParamInfo<std::tuple<Way, Activation, std::pair<int64_t, int64_t>>>&
        tested) {
  return std::get<0>(tested.param).name + "_" + std::string(to_string(std::get<1>(tested.param))) +
         "_" + std::to_string(std::get<2>(tested.param).second);
}

INSTANTIATE_TEST_SUITE_P(Separate, GroupedActivationTest,
                         testing::Combine(testing::Values(Way{"f32", DType::f32, std::nullopt},
                                                          Way{"bf16", DType::bf16, std::nullopt}),
                                          testing::Values(Activation::swiglu, Activation::gelu),
                                          testing::Values(std::pair(17, 33))),
                         name_of);

const Way kCutlass{"cutlass", DType::bf16, ExpertProductMethod::cutlass};
INSTANTIATE_TEST_SUITE_P(Cutlass, GroupedActivationTest,
                         testing::Combine(testing::Values(kCutlass),
                                          testing::Values(Activation::swiglu, Activation::gelu,
                                                          Activation::relu, Activation::relu2,
                                                          Activation::silu),
                                          testing::Values(std::pair(32, 64), std::pair(24, 136))),
                         name_of);
// An inner dimension of more stages than the kernel has, and two tiles of gates and ups.
INSTANTIATE_TEST_SUITE_P(CutlassWide, GroupedActivationTest,
                         testing::Combine(testing::Values(kCutlass),
                                          testing::Values(Activation::swiglu),
                                          testing::Values(std::pair(392, 128))),
                         name_of);

}  // namespace
}  // namespace switchyard
