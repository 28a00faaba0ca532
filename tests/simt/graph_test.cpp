// Work that is recorded as a graph: replays, and what a recording refuses as CUDA does.
#include "kernels/runtime/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/host_mirror.h"
#include "kernels/runtime/tensor.h"
#include "tests/support/error_of.h"

namespace switchyard {
namespace {

using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;

class GraphTest : public testing::Test {
 protected:
  Tensor on_device(const std::vector<float>& values) {
    Tensor tensor({std::ssize(values)}, DType::f32, kDevice);
    copy(stream_, view_of(std::span(values)), tensor);
    return tensor;
  }
  std::vector<float> values_of(Tensor& tensor) {
    HostMirror mirror(tensor);
    mirror.download(stream_);
    const auto* values = mirror.host().data<float>();
    return {values, values + tensor.num_elements()};
  }

  static constexpr Device kDevice{DeviceKind::cuda, 0};
  Stream stream_{kDevice};
};

TEST_F(GraphTest, RecordedWorkRunsWhenItIsReplayedOnTheValuesOfThatTime) {
  Tensor x = on_device({1, 2}), y = on_device({10, 10});
  Graph graph(stream_, [&] {
    add(stream_, x, y);
    copy(stream_, y, x);
  });
  EXPECT_THAT(values_of(y), ElementsAre(10, 10)) << "recording does not run it";

  graph.launch(stream_);
  EXPECT_THAT(values_of(x), ElementsAre(11, 12));
  graph.launch(stream_);
  EXPECT_THAT(values_of(y), ElementsAre(22, 24));

  Stream other(kDevice);
  graph.launch(other);
  other.synchronize();
  EXPECT_THAT(values_of(y), ElementsAre(44, 48));
}

TEST_F(GraphTest, ARecordingRefusesWhatAReplayCouldNotRepeat) {
  Tensor x = on_device({1, 2}), y = on_device({10, 10});
  const std::vector<float> on_host = {5, 6};
  Event event(kDevice);
  stream_.synchronize();
  const std::function<void()> refused[] = {
      [&] { stream_.synchronize(); }, [&] { Tensor({2}, DType::f32, kDevice); },
      [&] { copy(stream_, view_of(std::span(on_host)), x); }, [&] { event.record(stream_); }};

  for (const auto& work : refused) {
    EXPECT_THAT(error_of([&] {
                  Graph(stream_, [&] {
                    add(stream_, x, y);
                    work();
                  });
                }),
                HasSubstr("not permitted when stream is capturing"));
    EXPECT_THAT(values_of(y), ElementsAre(10, 10));
  }
  add(stream_, x, y);  // The stream runs its work again.
  EXPECT_THAT(values_of(y), ElementsAre(11, 12));
}

TEST_F(GraphTest, OnlyCudaDevicesRecord) {
  Stream on_cpu;

  EXPECT_THAT(error_of([&] { Graph(on_cpu, [] {}); }), HasSubstr("cpu cannot be recorded"));
}

}  // namespace
}  // namespace switchyard
