// The order in which an exchange puts its work into streams, as a device that only counts shows it.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "kernels/runtime/work_observer.h"
#include "parallel/counting_communicator.h"
#include "parallel/distributed_context.h"
#include "parallel/expert_exchange.h"

namespace switchyard {
namespace {

// Ops by their names, and collectives as "send" and "wait".
class SeenWork final : public WorkObserver, public CollectiveObserver {
 public:
  void begin_op(const char* op, int64_t) override { work.emplace_back(op); }
  int64_t start(const Collective&) override {
    work.emplace_back("send");
    return 0;
  }
  void wait(int64_t) override { work.emplace_back("wait"); }

  std::vector<std::string> take() { return std::exchange(work, {}); }

  std::vector<std::string> work;
};

// Rank 1 of an ep group of 4 ranks.
class ExchangeOrderTest : public testing::TestWithParam<DeviceKind> {
 protected:
  ExchangeOrderTest() { stream_.set_observer(&seen_); }

  TensorView tensor(Shape shape, DType dtype) { return scratch_.take(shape, dtype); }
  std::unique_ptr<ExchangePlan> plan(ExpertExchange& exchange) {
    auto plan = exchange.begin_plan(stream_, lists_, scratch_, tensor({64, 2}, DType::i32),
                                    tensor({64, 2}, DType::f32));
    plan->finish(stream_);
    return plan;
  }

  const Device device_ = counting_device(GetParam());
  SeenWork seen_;
  Stream stream_{device_};
  Workspace lists_{device_}, scratch_{device_};
  const DistributedContext dist_ =
      DistributedContext::counting(ParallelLayout(4, /*tp=*/1, /*ep=*/4), 1, &seen_);
};

INSTANTIATE_TEST_SUITE_P(Devices, ExchangeOrderTest,
                         testing::Values(DeviceKind::cpu, DeviceKind::cuda));

TEST_P(ExchangeOrderTest, RowsOfAllChunksAreUnderWayBeforeArrivalsAreListed) {
  const auto exchange = make_expert_exchange(dist_.exchange_groups(), device_, 8, {.chunks = 3});

  const auto plan = this->plan(*exchange);
  // Counts, and then assignments.
  EXPECT_THAT(seen_.take(), testing::ElementsAre("plan_sends", "send", "wait", "send"));

  plan->dispatch(stream_, scratch_, tensor({64, 4}, DType::f32));
  EXPECT_THAT(seen_.take(), testing::ElementsAre("spread_rows", "send", "spread_rows", "send",
                                                 "send", "wait", "plan_arrivals"));
}

TEST_P(ExchangeOrderTest, AKeptPlanOnlySendsRows) {
  const auto exchange = make_expert_exchange(dist_.exchange_groups(), device_, 8, {.chunks = 3});
  const auto plan = this->plan(*exchange);
  plan->dispatch(stream_, scratch_, tensor({64, 4}, DType::f32));
  seen_.take();

  plan->dispatch(stream_, scratch_, tensor({64, 4}, DType::f32));

  EXPECT_THAT(seen_.take(),
              testing::ElementsAre("spread_rows", "send", "spread_rows", "send", "send"));
}

}  // namespace
}  // namespace switchyard
