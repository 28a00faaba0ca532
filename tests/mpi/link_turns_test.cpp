// Gathers, and long exchanges of rows, take turns on a rank's links while MPI works in the
// background. The calls of MPI that begin and end their messages pass through the functions below,
// as MPI's profiling interface allows.
#include <gtest/gtest.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "mpi/mpi_test.h"
#include "tests/support/test_tensors.h"

namespace {

// The thread that advances operations calls MPI as well, but never at the same time.
struct UnderWay {
  int last_tag = -1;
  int groups = 0;  // of messages of one tag
  int now = 0;     // groups that have begun and not ended
  int most = 0;
} under_way;

void note_send(int tag) {
  if (tag == under_way.last_tag) return;
  under_way.last_tag = tag;
  ++under_way.groups;
  under_way.most = std::max(under_way.most, ++under_way.now);
}

void note_end(int count) {
  if (count > 0) --under_way.now;
}

}  // namespace

extern "C" {

int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request* request) {
  note_send(tag);
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}

int MPI_Testall(int count, MPI_Request requests[], int* all, MPI_Status statuses[]) {
  const int code = PMPI_Testall(count, requests, all, statuses);
  if (*all != 0) note_end(count);
  return code;
}

int MPI_Waitall(int count, MPI_Request requests[], MPI_Status statuses[]) {
  const int code = PMPI_Waitall(count, requests, statuses);
  note_end(count);
  return code;
}
}

namespace switchyard {
namespace {

using test::Tensor;
using test::test_mpi;

class LinkTurnsTest : public testing::Test {
 protected:
  static constexpr size_t kTransfers = 5;
  static constexpr int64_t kShare = 40'000;

  LinkTurnsTest() {
    for (size_t t = 0; t < kTransfers; ++t) {
      in_.emplace_back(Shape{kShare * ranks_}, DType::f32);
      out_.emplace_back(Shape{kShare * ranks_}, DType::f32);
      std::fill_n(in_.back().view().data<float>(), kShare * ranks_, value(t, rank_));
    }
    world_.barrier(stream_);
    under_way = {};
    // Rank 0 comes early, so that its first transfer cannot end before the last has started.
    if (rank_ > 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }

  static float value(size_t transfer, int64_t rank) {
    return static_cast<float>(10 * static_cast<int64_t>(transfer) + rank);
  }

  // In the reverse order of their starts.
  void wait_for(std::vector<std::unique_ptr<PendingCollective>> pending) {
    for (size_t t = pending.size(); t-- > 0;) pending[t]->wait(stream_);
  }

  void expect_the_shares_of_all_ranks() {
    EXPECT_EQ(under_way.groups, static_cast<int>(kTransfers));
    for (size_t t = 0; t < kTransfers; ++t) {
      for (int64_t from = 0; from < ranks_; ++from) {
        const float* share = out_[t].view().data<float>() + from * kShare;
        EXPECT_EQ(share[0], value(t, from));
        EXPECT_EQ(share[kShare - 1], value(t, from));
      }
    }
  }

  Communicator& world_ = test_mpi().world();
  int64_t rank_ = test_mpi().rank(), ranks_ = test_mpi().world_size();
  Stream stream_;
  std::vector<Tensor> in_, out_;
};

TEST_F(LinkTurnsTest, AGatherBeginsWhenTheOneBeforeItHasEnded) {
  std::vector<std::unique_ptr<PendingCollective>> pending;
  for (size_t t = 0; t < kTransfers; ++t) {
    pending.push_back(world_.start_all_gather(stream_, in_[t].view().rows(0, kShare), out_[t]));
  }
  wait_for(std::move(pending));

  EXPECT_EQ(under_way.most, 1);
  expect_the_shares_of_all_ranks();
}

TEST_F(LinkTurnsTest, AtMostTwoLongExchangesAreUnderWay) {
  const std::vector<int64_t> each(static_cast<size_t>(ranks_), kShare);
  std::vector<std::unique_ptr<PendingCollective>> pending;
  for (size_t t = 0; t < kTransfers; ++t) {
    pending.push_back(world_.start_all_to_all_v(stream_, in_[t], each, out_[t], each));
  }
  wait_for(std::move(pending));

  EXPECT_LE(under_way.most, 2);
  expect_the_shares_of_all_ranks();
}

}  // namespace
}  // namespace switchyard
