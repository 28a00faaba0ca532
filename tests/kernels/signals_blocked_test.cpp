#include "kernels/runtime/signals_blocked.h"

#include <gtest/gtest.h>

#include <thread>

namespace switchyard {
namespace {

bool is_blocked(int signal) {
  sigset_t blocked;
  pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  return sigismember(&blocked, signal) == 1;
}

TEST(SignalsBlockedTest, ThreadsThatStartMeanwhileGetNone) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) {
    bool in_thread = false;
    {
      const SignalsBlocked blocked;
      std::thread([&] { in_thread = is_blocked(signal); }).join();
    }
    EXPECT_TRUE(in_thread) << signal;
    EXPECT_FALSE(is_blocked(signal)) << signal;
    std::thread([&] { in_thread = is_blocked(signal); }).join();
    EXPECT_FALSE(in_thread) << signal;
  }
}

}  // namespace
}  // namespace switchyard
