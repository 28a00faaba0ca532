// Libraries of other versions, and what the program asks of them. A test can choose that on an
// emulated device only.
#include <cublasLt.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/grouped_cutlass.h"
#include "kernels/cuda/grouped_lt.h"
#include "kernels/cuda/support.h"
#include "kernels/linear/grouped_activation.h"
#include "kernels/linear/matmul.h"
#include "tests/simt/emulated_cutlass.h"
#include "tests/simt/simt.h"
#include "tests/support/method_scope.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::Tensor;
using test::to_floats;

constexpr Device kDevice{DeviceKind::cuda, 0};

// An environment variable while an object of this class exists.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { before_ ? setenv(name_, before_->c_str(), 1) : unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

class GroupedLtTest : public testing::Test {
 protected:
  // Calls of cuBLASLt for all experts, in the forward and backward passes of one map.
  int64_t calls(int64_t in, int64_t out, const std::vector<int64_t>& row_offsets) {
    const int64_t rows = row_offsets.back(), experts = std::ssize(row_offsets) - 1;
    const Tensor x = random_tensor({rows, in}, 1, DType::bf16);
    const Tensor dy = random_tensor({rows, out}, 2, DType::bf16);
    const Tensor weight = random_tensor({experts, out, in}, 3, DType::bf16);
    Tensor y(dy.shape(), DType::bf16), dx(x.shape(), DType::bf16);
    Tensor dweight(weight.shape(), DType::f32);
    const int64_t before = emulated_grouped_calls();
    grouped_linear_forward(stream_, x, weight, row_offsets, y);
    grouped_linear_backward_input(stream_, dy, weight, row_offsets, dx);
    grouped_linear_backward_weight(stream_, dy, x, row_offsets, Accumulate::yes, dweight);
    stream_.synchronize();
    return emulated_grouped_calls() - before;
  }

  test::Stream stream_;
  const test::ExpertProductScope scope_{ExpertProductMethod::cublas_lt};
};

TEST_F(GroupedLtTest, EachOpIsOneCallForAllExperts) {
  EXPECT_EQ(calls(32, 64, {0, 3, 3, 40, 41}), 3);
}

TEST_F(GroupedLtTest, RowsThatAreNotAlignedAreLeftToOthers) {
  EXPECT_EQ(calls(33, 64, {0, 3, 5}), 0);
  EXPECT_EQ(calls(32, 68, {0, 3, 5}), 0);
}

TEST_F(GroupedLtTest, MoreExpertsThanFitIntoTheScratchAreLeftToOthers) {
  std::vector<int64_t> row_offsets;
  for (int64_t e = 0; e <= 1200; ++e) row_offsets.push_back(e);

  EXPECT_EQ(calls(8, 8, row_offsets), 0);
}

class GroupedCutlassTest : public testing::Test {
 protected:
  // Calls of CUTLASS in the forward and in the backward pass next to the activation.
  std::pair<int64_t, int64_t> calls(Activation activation, int64_t width, int64_t ffn,
                                    const std::vector<int64_t>& row_offsets,
                                    DType dtype = DType::bf16, int64_t misplaced = 0) {
    const int64_t rows = row_offsets.back(), experts = std::ssize(row_offsets) - 1;
    const int64_t up_width = is_gated(activation) ? 2 * ffn : ffn;
    const Tensor values = random_tensor({rows * width + misplaced}, 1, dtype);
    const auto* first = static_cast<const std::byte*>(values.view().raw());
    const ConstTensorView x(first + misplaced * static_cast<int64_t>(size_of(dtype)), {rows, width},
                            dtype, kDevice);
    const Tensor up_weight = random_tensor({experts, up_width, width}, 2, dtype);
    const Tensor down_weight = random_tensor({experts, width, ffn}, 3, dtype);
    const Tensor scale = random_tensor({rows}, 4);
    Tensor up({rows, up_width}, dtype), act({rows, ffn}, dtype), dup({rows, up_width}, dtype);
    Tensor dscale({rows}, DType::f32);
    const int64_t before = simt::cutlass_calls();
    grouped_activation_forward(stream_, activation, x, up_weight, row_offsets, scale, up, act);
    const int64_t between = simt::cutlass_calls();
    grouped_activation_backward(stream_, workspace_, activation, x, down_weight, row_offsets, up,
                                scale, dup, dscale, act);
    stream_.synchronize();
    return {between - before, simt::cutlass_calls() - between};
  }

  using Calls = std::pair<int64_t, int64_t>;
  const Setting there_{"SWITCHYARD_EMULATED_CUTLASS", "1"};
  test::Stream stream_;
  test::Workspace workspace_;
  const test::ExpertProductScope scope_{ExpertProductMethod::cutlass};
};

TEST_F(GroupedCutlassTest, EachOpIsOneCallForAllExperts) {
  EXPECT_EQ(calls(Activation::gelu, 32, 64, {0, 3, 3, 40, 41}), Calls(1, 1));
}

TEST_F(GroupedCutlassTest, GateAndUpAreInOneCallWhereHalvesOfTilesFit) {
  EXPECT_EQ(calls(Activation::swiglu, 32, 64, {0, 3, 3, 40, 41}), Calls(1, 1));
  EXPECT_EQ(calls(Activation::swiglu, 32, 72, {0, 3, 3, 40, 41}), Calls(0, 1));
}

TEST_F(GroupedCutlassTest, WhatIsNotAlignedIsLeftToOthers) {
  EXPECT_EQ(calls(Activation::gelu, 33, 64, {0, 3, 5}), Calls(0, 0));
  EXPECT_EQ(calls(Activation::gelu, 32, 68, {0, 3, 5}), Calls(0, 0));
  EXPECT_EQ(calls(Activation::gelu, 32, 64, {0, 3, 5}, DType::bf16, /*misplaced=*/1), Calls(0, 0));
}

TEST_F(GroupedCutlassTest, NoRowsF32AndManyExpertsAreLeftToOthers) {
  std::vector<int64_t> most(cuda::kMostGroupedExperts + 1, 0);
  most.back() = 5;
  std::vector<int64_t> more(most);
  more.push_back(5);

  EXPECT_EQ(calls(Activation::gelu, 32, 64, {0, 0, 0}), Calls(0, 0));
  EXPECT_EQ(calls(Activation::gelu, 32, 64, {0, 3, 5}, DType::f32), Calls(0, 0));
  EXPECT_EQ(calls(Activation::relu, 8, 8, most), Calls(1, 1));
  EXPECT_EQ(calls(Activation::relu, 8, 8, more), Calls(0, 0));
}

TEST_F(GroupedCutlassTest, OtherMethodsAndAnotherDeviceDoWithout) {
  {
    const test::ExpertProductScope other(ExpertProductMethod::cublas_lt);
    EXPECT_EQ(calls(Activation::gelu, 32, 64, {0, 3, 5}), Calls(0, 0));
  }
  unsetenv("SWITCHYARD_EMULATED_CUTLASS");
  EXPECT_EQ(calls(Activation::gelu, 32, 64, {0, 3, 5}), Calls(0, 0));
}

// As in a plan, where no method is set: the run will choose.
TEST_F(GroupedCutlassTest, APlanCountsTheScratchOfTheBackwardPass) {
  const auto used_on = [](Device device) {
    Stream stream(device);
    Workspace workspace(device);
    const auto make = [&](const Shape& shape, DType dtype) {
      return switchyard::Tensor(shape, dtype, device);
    };
    switchyard::Tensor dy = make({300, 16}, DType::bf16), weight = make({2, 16, 136}, DType::bf16);
    switchyard::Tensor up = make({300, 136}, DType::bf16), dup = make({300, 136}, DType::bf16);
    switchyard::Tensor act = make({300, 136}, DType::bf16), scale = make({300}, DType::f32);
    switchyard::Tensor dscale = make({300}, DType::f32);
    grouped_activation_backward(stream, workspace, Activation::gelu, dy, weight,
                                std::vector<int64_t>{0, 100, 300}, up, scale, dup, dscale, act);
    stream.synchronize();
    return workspace.high_water();
  };
  const test::ExpertProductScope none(std::nullopt);
  const size_t planned = used_on(counting_device(DeviceKind::cuda));
  const test::ExpertProductScope chosen(ExpertProductMethod::cutlass);

  EXPECT_EQ(planned, used_on(kDevice));
  EXPECT_GE(planned, sizeof(float) * 2 * 300);  // two tiles of columns
  {
    const test::ExpertProductScope other(ExpertProductMethod::streams);
    EXPECT_EQ(used_on(counting_device(DeviceKind::cuda)), 0U);
  }
  unsetenv("SWITCHYARD_EMULATED_CUTLASS");
  EXPECT_EQ(used_on(counting_device(DeviceKind::cuda)), 0U);
}

// From ordinary memory CUDA would stage the values, and might let the host wait.
class UploadTest : public testing::TestWithParam<ExpertProductMethod> {};

TEST_P(UploadTest, ArgumentsTravelThroughPinnedMemoryThatIsNotOverwrittenTooEarly) {
  constexpr int64_t kExperts = 3, kWidth = 16, kRows = 24, kCalls = 2 * cuda::kMostUploads + 3;
  const Setting there("SWITCHYARD_EMULATED_CUTLASS", "1");
  const test::ExpertProductScope scope(GetParam());
  const Tensor x = random_tensor({kRows, kWidth}, 1, DType::bf16);
  const Tensor weight = random_tensor({kExperts, kWidth, kWidth}, 2, DType::bf16);
  std::vector<Tensor> up, act;
  for (int64_t i = 0; i < kCalls; ++i) {
    up.emplace_back(Shape{kRows, kWidth}, DType::bf16);
    act.emplace_back(Shape{kRows, kWidth}, DType::bf16);
  }
  const auto offsets = [](int64_t i) {
    return std::vector<int64_t>{0, 1 + i % 11, 12 + i % 7, kRows};
  };
  test::Stream stream;
  const int64_t before = simt::pageable_copies();

  // The emulated device begins with none of them before it must.
  for (size_t i = 0; i < up.size(); ++i) {
    grouped_activation_forward(stream, Activation::relu, x, weight,
                               offsets(static_cast<int64_t>(i)), {}, up[i], act[i]);
  }
  const int64_t copies = simt::pageable_copies() - before;
  stream.synchronize();

  EXPECT_EQ(copies, 0);
  const test::ExpertProductScope plain(ExpertProductMethod::streams);
  for (size_t i = 0; i < up.size(); ++i) {
    Tensor expected({kRows, kWidth}, DType::bf16);
    grouped_linear_forward(stream, x, weight, offsets(static_cast<int64_t>(i)), expected);
    EXPECT_LT(test::relative_error(to_floats(up[i]), to_floats(expected)), 1e-2) << "call " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, UploadTest,
                         testing::Values(ExpertProductMethod::cublas_lt,
                                         ExpertProductMethod::cutlass, ExpertProductMethod::cublas),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

TEST(UploadTest, AStreamThatRecordsRefuses) {
  test::Stream stream;
  const std::vector<std::byte> values(8);
  const Buffer target(8, kDevice);
  cuda::begin_recording(*stream.cuda());

  EXPECT_THAT([&] { cuda::upload(stream, values, target.data()); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("a stream that records")));

  cuda::abandon_recording(*stream.cuda());
}

TEST(GroupedLtVersionTest, FaultyVersionsAreNotUsed) {
  const auto has = [](const char* version) {
    const Setting setting("SWITCHYARD_EMULATED_CUBLAS_VERSION", version);
    return cuda::has_grouped_lt(kDevice);
  };

  EXPECT_FALSE(has("130100"));
  EXPECT_FALSE(has("130400"));
  EXPECT_FALSE(has("130800"));
  EXPECT_TRUE(has("130801"));
  EXPECT_TRUE(has("131000"));
}

TEST(MethodsTest, OnlyMethodsThatAreThereHaveSeconds) {
  test::Stream stream;
  using enum ExpertProductMethod;
  const ExpertProducts aligned{.experts = 3, .rows = 40, .width = 16, .ffn_hidden = 32};
  const ExpertProducts odd{.experts = 3, .rows = 40, .width = 16, .ffn_hidden = 12};
  const AttentionWork work{.batch = 1, .heads = 2, .kv_heads = 1, .seq_len = 9, .head_dim = 8};

  const Setting there("SWITCHYARD_EMULATED_CUTLASS", "1");
  for (const auto method : {cublas_lt, cutlass, cublas, streams}) {
    const bool needs_alignment = method == cublas_lt || method == cutlass;
    EXPECT_GT(measure_expert_product_methods(stream, aligned)[method], 0.0);
    EXPECT_EQ(measure_expert_product_methods(stream, odd).has(method), !needs_alignment);
  }
  {
    const Setting old("SWITCHYARD_EMULATED_CUBLAS_VERSION", "130100");
    const auto seconds = measure_expert_product_methods(stream, aligned);
    EXPECT_FALSE(seconds.has(cublas_lt));
    EXPECT_FALSE(seconds.has(cutlass));  // cuBLASLt computes the other products
  }
  unsetenv("SWITCHYARD_EMULATED_CUTLASS");
  EXPECT_FALSE(measure_expert_product_methods(stream, aligned).has(cutlass));
  EXPECT_TRUE(measure_expert_product_methods(stream, aligned).has(cublas_lt));
  const Setting cudnn("SWITCHYARD_EMULATED_CUDNN", "4096");
  EXPECT_GT(measure_attention_methods(stream, work)[AttentionMethod::cudnn], 0.0);
  EXPECT_GT(measure_attention_methods(stream, work)[AttentionMethod::own], 0.0);
  unsetenv("SWITCHYARD_EMULATED_CUDNN");
  EXPECT_FALSE(measure_attention_methods(stream, work).has(AttentionMethod::cudnn));
  EXPECT_EQ(expert_product_method(), std::nullopt);
  EXPECT_EQ(attention_method(), std::nullopt);
}

TEST(MethodsTest, AMethodWhoseResultsAreWrongIsNotThere) {
  test::Stream stream;
  const Setting wrong("SWITCHYARD_EMULATED_CUTLASS", "wrong");
  const ExpertProducts products{.experts = 3, .rows = 40, .width = 16, .ffn_hidden = 64};

  const auto seconds = measure_expert_product_methods(stream, products);

  EXPECT_FALSE(seconds.has(ExpertProductMethod::cutlass));
  EXPECT_TRUE(seconds.has(ExpertProductMethod::cublas_lt));
}

TEST(MethodsTest, WithoutMemoryForAMeasurementNoLibraryIsNeeded) {
  const test::DeviceOnlyMemory memory;
  test::Stream stream;
  const Setting cudnn("SWITCHYARD_EMULATED_CUDNN", "4096");
  const ExpertProducts products{.experts = 3, .rows = 4000, .width = 16, .ffn_hidden = 32};
  const AttentionWork work{.batch = 1, .heads = 2, .kv_heads = 1, .seq_len = 4000, .head_dim = 8};
  const MemoryFigures figures = memory_of(kDevice);
  const Setting full("SWITCHYARD_EMULATED_DEVICE_BYTES",
                     std::to_string(figures.total_bytes - figures.free_bytes + 65536));

  const auto experts = measure_expert_product_methods(stream, products);
  const auto attention = measure_attention_methods(stream, work);

  EXPECT_EQ(experts.seconds,
            MethodSeconds<ExpertProductMethod>::only(ExpertProductMethod::streams).seconds);
  EXPECT_EQ(attention.seconds, MethodSeconds<AttentionMethod>::only(AttentionMethod::own).seconds);
}

class CudnnScratchTest : public testing::Test {
 protected:
  // Bytes that a pass takes from a workspace.
  template <class Stream, class Workspace>
  size_t used(Stream& stream, Workspace& workspace, bool backward) {
    const Shape of_q{2, 4, 33, 64}, of_k{2, 2, 33, 64}, of_out{66, 256};
    const Device device = stream.device();
    const auto bf16 = [&](const Shape& shape) {
      return switchyard::Tensor(shape, DType::bf16, device);
    };
    switchyard::Tensor q = bf16(of_q), k = bf16(of_k), v = bf16(of_k), out = bf16(of_out);
    switchyard::Tensor dq = bf16(of_q), dk = bf16(of_k), dv = bf16(of_k), dout = bf16(of_out);
    switchyard::Tensor lse({2, 4, 33}, DType::f32, device);
    if (backward) {
      attention_backward(stream, workspace, dout, q, k, v, out, lse, {}, 0.5f, dq, dk, dv);
    } else {
      attention_forward(stream, workspace, q, k, v, {}, 0.5f, out, lse);
    }
    stream.synchronize();
    return workspace.high_water();
  }
  size_t used_on(Device device, bool backward) {
    Stream stream(device);
    Workspace workspace(device);
    return used(stream, workspace, backward);
  }
};

TEST_F(CudnnScratchTest, IsWhatCudnnAsksForIfThatIsMoreThanPlanned) {
  const test::AttentionScope scope(AttentionMethod::cudnn);
  const Setting cudnn("SWITCHYARD_EMULATED_CUDNN", std::to_string(5 << 20));

  EXPECT_EQ(used_on(kDevice, /*backward=*/false), size_t{5} << 20);
  EXPECT_EQ(used_on(kDevice, /*backward=*/true), size_t{5} << 20);
}

// As in a plan: the run will choose.
TEST_F(CudnnScratchTest, WithoutAMethodTheGreaterScratchIsCounted) {
  const Setting cudnn("SWITCHYARD_EMULATED_CUDNN", "4096");
  const Device counting = counting_device(DeviceKind::cuda);
  const auto with = [&](AttentionMethod method) {
    const test::AttentionScope scope(method);
    return used_on(kDevice, /*backward=*/true);
  };

  EXPECT_GT(with(AttentionMethod::cudnn), with(AttentionMethod::own));
  EXPECT_EQ(used_on(counting, /*backward=*/true), with(AttentionMethod::cudnn));

  unsetenv("SWITCHYARD_EMULATED_CUDNN");
  EXPECT_EQ(used_on(counting, /*backward=*/true), with(AttentionMethod::own));
}

TEST(CudnnAddressTest, OperandsThatAreNotAlignedAreLeftToOurKernels) {
  const Setting cudnn("SWITCHYARD_EMULATED_CUDNN", "4096");
  test::Stream stream;
  test::Workspace workspace;
  const Tensor values = random_tensor({2 * 9 * 64 + 1}, 1, DType::bf16);
  const Shape shape{1, 2, 9, 64};
  const ConstTensorView odd(values.data<bfloat16>() + 1, shape, DType::bf16, kDevice);
  Tensor out({9, 128}, DType::bf16), expected({9, 128}, DType::bf16), lse({1, 2, 9}, DType::f32);
  const auto attend = [&](AttentionMethod method, TensorView result) {
    const test::AttentionScope scope(method);
    attention_forward(stream, workspace, odd, odd, odd, {}, 0.1f, result, lse);
  };

  attend(AttentionMethod::own, expected);
  attend(AttentionMethod::cudnn, out);

  EXPECT_EQ(to_floats(out), to_floats(expected));
}

}  // namespace
}  // namespace switchyard
