#include "kernels/runtime/host_f32.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/support/test_device.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

template <class T>
test::Tensor on_device(const std::vector<float>& values) {
  test::Tensor x({static_cast<int64_t>(values.size())}, dtype_of<T>());
  for (size_t i = 0; i < values.size(); ++i) x.data<T>()[i] = T(values[i]);
  return x;
}

TEST(HostF32, HasTheValuesOfEveryDtypeAndDevice) {
  const std::vector<float> values = {1.0f, -2.5f, 0.0f, 384.0f};  // exact in bf16
  test::Stream stream;
  const test::Tensor wide = on_device<float>(values), narrow = on_device<bfloat16>(values);

  for (const test::Tensor* x : {&wide, &narrow}) {
    HostF32 host = host_f32(stream, *x);
    const HostF32 moved = std::move(host);

    EXPECT_EQ(moved.view.device().kind, DeviceKind::cpu);
    EXPECT_EQ(moved.view.shape(), x->shape());
    EXPECT_EQ(std::vector<float>(moved.values().begin(), moved.values().end()), values);
  }
}

TEST(HostF32, IsTheTensorItselfWhereThatIsFloatsOfTheHost) {
  switchyard::Stream stream;
  switchyard::Tensor x({3}, DType::f32);

  EXPECT_EQ(host_f32(stream, x).view.data<float>(), x.data<float>());
}

}  // namespace
}  // namespace switchyard
