#include "trainer/inference/far_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <vector>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/new_threads.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_tensors.h"
#include "trainer/inference/task_threads.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::random_tensor;
using test::to_floats;

// A layer that is written in pieces, as decoding does it, and read.
class FarFileTest : public testing::TestWithParam<std::tuple<DType, int64_t>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  int64_t head_dim() const { return std::get<1>(GetParam()); }
  Shape shape(int64_t length) const { return {2, 3, length, head_dim()}; }

  // Positions [begin, end) of k or v.
  Tensor part(const Tensor& all, int64_t begin, int64_t end) const {
    Tensor result(shape(end - begin), dtype());
    const size_t bytes = static_cast<size_t>(head_dim()) * size_of(dtype());
    for (int64_t head = 0; head < 6; ++head) {
      std::memcpy(address(result.view(), head, 0), address(all.view(), head, begin),
                  static_cast<size_t>(end - begin) * bytes);
    }
    return result;
  }
  static std::byte* address(ConstTensorView x, int64_t head, int64_t row) {
    return static_cast<std::byte*>(const_cast<void*>(x.raw())) +
           (head * x.dim(2) + row) * x.dim(3) * static_cast<int64_t>(size_of(x.dtype()));
  }
  void write(FarLayer& layer, int64_t begin, int64_t end) {
    layer.write(stream, part(k, begin, end), part(v, begin, end), begin);
  }
  std::vector<float> row(const Tensor& x, int64_t head, int64_t at) const {
    const std::vector<float> all = to_floats(x);
    const auto begin = all.begin() + (head * x.shape()[2] + at) * head_dim();
    return {begin, begin + head_dim()};
  }

  test::TemporaryFolder folder;
  Stream stream;
  Tensor k = random_tensor(shape(300), 1, dtype()), v = random_tensor(shape(300), 2, dtype());
};

TEST_P(FarFileTest, ReadsAnyRowsThatWereWrittenInAnyPieces) {
  FarFile file(folder.path());
  const auto first = file.add_layer(shape(300), dtype()),
             layer = file.add_layer(shape(300), dtype());
  write(*first, 0, 100);
  int64_t begin = 0;
  for (const int64_t end : {1, 64, 65, 127, 129, 290, 291}) {
    write(*layer, begin, end);
    begin = end;
  }

  const std::vector<int32_t> wanted = {0,  1,  63, 64, 65, 200, 290, -1,  5,  -1, 130, 131,
                                       -1, -1, -1, 0,  64, 128, 192, 256, 60, 62, 64,  291,
                                       -1, -1, 7,  -1, 9,  -1,  11,  12,  13, 14, 15,  16};
  const Tensor positions = make_tensor<int32_t>({2, 3, 6}, wanted);
  Tensor near_k(shape(8), dtype()), near_v(shape(8), dtype());
  layer->begin(stream,
               {.positions = positions, .first_slot = 2, .length = 291, .k = near_k, .v = near_v});
  layer->wait(stream);

  const std::vector<float> nothing(static_cast<size_t>(head_dim()), 0.0f);
  for (int64_t head = 0; head < 6; ++head) {
    for (int64_t slot = 0; slot < 8; ++slot) {
      const int32_t position = slot < 2 ? -1 : wanted[static_cast<size_t>(head * 6 + slot - 2)];
      const bool comes = position >= 0 && position < 291;
      EXPECT_EQ(row(near_k, head, slot), comes ? row(k, head, position) : nothing) << position;
      EXPECT_EQ(row(near_v, head, slot), comes ? row(v, head, position) : nothing) << position;
    }
  }
}

TEST_P(FarFileTest, ReadsARangeToItsOwnSlots) {
  FarFile file(folder.path());
  const auto layer = file.add_layer(shape(300), dtype());
  write(*layer, 0, 299);
  Tensor near_k(shape(300), dtype()), near_v(shape(300), dtype());

  layer->begin(stream, {.positions = {}, .length = 250, .k = near_k, .v = near_v});
  layer->wait(stream);
  layer->begin(stream,
               {.positions = {}, .first_position = 250, .length = 299, .k = near_k, .v = near_v});
  layer->wait(stream);

  EXPECT_EQ(to_floats(part(near_k, 0, 299)), to_floats(part(k, 0, 299)));
  EXPECT_EQ(to_floats(part(near_v, 0, 299)), to_floats(part(v, 0, 299)));
  EXPECT_EQ(row(near_k, 5, 299), std::vector<float>(static_cast<size_t>(head_dim()), 0.0f));
}

TEST_P(FarFileTest, RefusesRowsThatDoNotFollow) {
  FarFile file(folder.path());
  const auto layer = file.add_layer(shape(300), dtype());
  write(*layer, 0, 10);

  EXPECT_THAT(test::error_of([&] { write(*layer, 9, 12); }),
              testing::HasSubstr("rows from 9 on do not follow the 10"));
}

INSTANTIATE_TEST_SUITE_P(Rows, FarFileTest,
                         testing::Combine(testing::Values(DType::f32, DType::bf16),
                                          testing::Values(8, 64, 65)),
                         [](const auto& test) {
                           return std::string(to_string(std::get<0>(test.param))) + "_" +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST(FarFile, LeavesNoName) {
  const test::TemporaryFolder folder;
  const FarFile file(folder.path());

  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(FarFile, ThatCannotBeMadeIsAnErrorWithItsFolder) {
  const test::TemporaryFolder folder;
  const auto path = folder.path() / "file";
  std::ofstream(path) << "no folder";

  EXPECT_THAT(
      test::error_of([&] { FarFile file(path); }),
      testing::AllOf(testing::HasSubstr("decode.offload=file"), testing::HasSubstr(path.string())));
}

TEST(FarFile, ThatExceedsTheDiskIsAnError) {
  const test::TemporaryFolder folder;
  FarFile file(folder.path());

  EXPECT_THAT(test::error_of([&] {
                file.add_layer({1, 1, int64_t{1} << 33, 64}, DType::f32);
              }),
              testing::HasSubstr("do not fit into " + folder.path().string()));
}

TEST(TaskThreads, GetNoSignals) {
  const test::NewThreads new_threads;
  const TaskThreads threads(3, TaskThreads::kAlignment);

  EXPECT_EQ(new_threads.count(), 3);
  EXPECT_EQ(new_threads.count_that_get_signals(), 0);
}

TEST(TaskThreads, ThrowTheErrorOfATaskWhenAllHaveEnded) {
  TaskThreads threads(3, TaskThreads::kAlignment);
  TaskThreads::Job job;
  std::atomic<int> ended = 0;

  threads.begin(job, 100, [&](int64_t task, std::span<std::byte> buffer) {
    EXPECT_EQ(buffer.size(), TaskThreads::kAlignment);
    ++ended;
    if (task == 17) fail("task 17 fails");
  });

  EXPECT_THAT(test::error_of([&] { threads.wait(job); }), testing::HasSubstr("task 17 fails"));
  EXPECT_EQ(ended, 100);
  threads.begin(job, 2, [&](int64_t, std::span<std::byte>) { ++ended; });
  threads.wait(job);
  EXPECT_EQ(ended, 102);
}

TEST(TaskThreads, AnUrgentJobOvertakesTheTasksThatHaveNotBegun) {
  TaskThreads threads(1, TaskThreads::kAlignment);
  TaskThreads::Job slow, urgent;
  std::atomic<bool> go = false;
  std::vector<int> order;

  threads.begin(slow, 2, [&](int64_t, std::span<std::byte>) {
    while (!go) std::this_thread::yield();
    order.push_back(1);
  });
  threads.begin(
      urgent, 1, [&](int64_t, std::span<std::byte>) { order.push_back(2); }, true);
  go = true;
  threads.wait(slow);
  threads.wait(urgent);

  EXPECT_EQ(order.back(), 1);
}

}  // namespace
}  // namespace switchyard
