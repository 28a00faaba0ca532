#include "trainer/commands/progress_line.h"

#include <gtest/gtest.h>

#include <sstream>

namespace switchyard {
namespace {

TEST(ProgressLineTest, ATerminalShowsOneLineThatGoesAwayAtTheEnd) {
  std::ostringstream out;
  ProgressLine line(out, /*is_terminal=*/true);

  // The clock began before the text did.
  line.show(0, 100'000'000, 1000.0);
  EXPECT_EQ(out.str(), "");
  line.show(25'000'000, 100'000'000, 1010.0);
  EXPECT_EQ(out.str(), " 25 %  25.0 of 100.0 MB  2.50 MB/s  0:30 left");
  out.str("");
  line.show(50'000'000, 100'000'000, 1020.0);
  EXPECT_EQ(out.str(), "\r\033[K 50 %  50.0 of 100.0 MB  2.50 MB/s  0:20 left");
  out.str("");
  line.show(100'000'000, 100'000'000, 1040.0);
  EXPECT_EQ(out.str(), "\r\033[K");
}

TEST(ProgressLineTest, ALogGetsALinePerMinute) {
  std::ostringstream out;
  ProgressLine line(out, /*is_terminal=*/false);

  for (int second = 0; second <= 100; ++second) line.show(second * 1000, 200'000, second);

  EXPECT_EQ(out.str(), " 30 %  0.1 of 0.2 MB  0.00 MB/s  2:20 left\n");
}

}  // namespace
}  // namespace switchyard
