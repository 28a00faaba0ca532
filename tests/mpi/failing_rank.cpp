// Tests of mpi_test_main.cpp, not of the program: one rank fails in each. failing_rank_test.py runs
// them and checks how the job ends.
#include <gtest/gtest.h>

#include <stdexcept>

#include "mpi/mpi_test.h"

namespace switchyard {
namespace {

using test::test_mpi;

bool is_last_rank() { return test_mpi().rank() == test_mpi().world_size() - 1; }

void wait_for_all() {
  Stream stream;
  test_mpi().world().barrier(stream);
}

TEST(FailingRank, Throws) {
  if (is_last_rank()) throw std::runtime_error("the last rank gives up");
  wait_for_all();
}

TEST(FailingRank, FailsAnAssertion) {
  ASSERT_FALSE(is_last_rank()) << "the last rank gives up";
  wait_for_all();
}

TEST(FailingRank, FailsAnExpectation) {
  EXPECT_FALSE(is_last_rank()) << "the last rank is not content";
  wait_for_all();
}

TEST(FailingRank, WhatComesAfterwards) { wait_for_all(); }

}  // namespace
}  // namespace switchyard
