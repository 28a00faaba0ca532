// Libraries of other versions, and what the program asks of them. A test can choose that on an
// emulated device only.
#include <cublasLt.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/grouped_lt.h"
#include "kernels/linear/matmul.h"
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
  const ExpertProducts aligned{.experts = 3, .rows = 40, .maps = {{16, 32}, {32, 16}}};
  const ExpertProducts odd{.experts = 3, .rows = 40, .maps = {{16, 32}, {32, 12}}};
  const AttentionWork work{.batch = 1, .heads = 2, .kv_heads = 1, .seq_len = 9, .head_dim = 8};

  for (const auto method : {cublas_lt, cublas, streams}) {
    EXPECT_GT(measure_expert_product_methods(stream, aligned)[method], 0.0);
    EXPECT_EQ(measure_expert_product_methods(stream, odd).has(method), method != cublas_lt);
  }
  {
    const Setting old("SWITCHYARD_EMULATED_CUBLAS_VERSION", "130100");
    EXPECT_FALSE(measure_expert_product_methods(stream, aligned).has(cublas_lt));
  }
  const Setting cudnn("SWITCHYARD_EMULATED_CUDNN", "4096");
  EXPECT_GT(measure_attention_methods(stream, work)[AttentionMethod::cudnn], 0.0);
  EXPECT_GT(measure_attention_methods(stream, work)[AttentionMethod::own], 0.0);
  unsetenv("SWITCHYARD_EMULATED_CUDNN");
  EXPECT_FALSE(measure_attention_methods(stream, work).has(AttentionMethod::cudnn));
  EXPECT_EQ(expert_product_method(), std::nullopt);
  EXPECT_EQ(attention_method(), std::nullopt);
}

TEST(MethodsTest, WithoutMemoryForAMeasurementNoLibraryIsNeeded) {
  const test::DeviceOnlyMemory memory;
  test::Stream stream;
  const Setting cudnn("SWITCHYARD_EMULATED_CUDNN", "4096");
  const ExpertProducts products{.experts = 3, .rows = 4000, .maps = {{16, 32}}};
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
