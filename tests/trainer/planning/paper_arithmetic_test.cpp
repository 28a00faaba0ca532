#include "trainer/planning/paper_arithmetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "trainer/config/config_reader.h"
#include "trainer/planning/plan.h"

namespace switchyard {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

RunConfig config_of(const std::string& name) {
  return load_config(std::string(SWITCHYARD_SOURCE_DIR) + "/configs/" + name + ".yaml", {}).config;
}

// Table 4 of the BigMac paper, to the printed digits.
TEST(PaperArithmeticTest, GivesTable4) {
  const PaperSetting setting = paper_setting(config_of("gpt3_xl_fine_grained").model);

  const PaperFigures fine_grained = paper_fine_grained(setting), bigmac = paper_bigmac(setting);

  EXPECT_NEAR(fine_grained.parameters * 1e-9, 3.73, 0.005);
  EXPECT_NEAR(bigmac.parameters * 1e-9, 3.78, 0.005);
  EXPECT_NEAR(fine_grained.flops * 1e-12, 3490.67, 0.005);
  EXPECT_NEAR(bigmac.flops * 1e-12, 3649.00, 0.005);
  EXPECT_EQ(fine_grained.exchange_bytes / kGiB, 1488.0);
  EXPECT_EQ(bigmac.exchange_bytes / kGiB, 372.0);
}

TEST(PaperArithmeticTest, EitherTwinHasTheSameSetting) {
  const PaperSetting fine_grained = paper_setting(config_of("gpt3_xl_fine_grained").model);
  const PaperSetting bigmac = paper_setting(config_of("gpt3_xl_bigmac").model);

  EXPECT_EQ(paper_bigmac(fine_grained).parameters, paper_bigmac(bigmac).parameters);
  EXPECT_EQ(bigmac.ratio, 0.25);
  EXPECT_EQ(bigmac.batch, 256.0);
  EXPECT_EQ(bigmac.vocab, 50304.0);
}

// The models of configs/, counted tensor by tensor, round to the same figures. They have a router
// in every layer (the paper counts one), no biases in the experts (the paper counts 2 r h for
// each), and as many embeddings as there are tokens and positions.
TEST(PaperArithmeticTest, TheXlTwinsThemselvesHaveThePapersSizes) {
  const int64_t fine_grained = count_parameters(config_of("gpt3_xl_fine_grained").model).total;
  const int64_t bigmac = count_parameters(config_of("gpt3_xl_bigmac").model).total;

  EXPECT_NEAR(static_cast<double>(fine_grained) * 1e-9, 3.73, 0.005);
  EXPECT_NEAR(static_cast<double>(bigmac) * 1e-9, 3.78, 0.005);
  // The difference is 2 r l h^2, exactly as in Table 3.
  EXPECT_EQ(bigmac - fine_grained, 2 * 24 * 512 * int64_t{2048});
}

// Eq. 1 over all layers, forward and backward, in bf16: with the paper's own batch and ep = 32.
TEST(PaperArithmeticTest, TheXlTwinsThemselvesExchangeWhatThePaperSays) {
  constexpr int64_t kTokens = 524288;

  EXPECT_EQ(
      exchange_bytes_per_step(config_of("gpt3_xl_fine_grained").model, kTokens, 32, DType::bf16),
      int64_t{1488} << 30);
  EXPECT_EQ(exchange_bytes_per_step(config_of("gpt3_xl_bigmac").model, kTokens, 32, DType::bf16),
            int64_t{372} << 30);
}

TEST(PaperArithmeticTest, IsShownForGptStyleTwinsOnly) {
  using ::testing::HasSubstr;
  const std::string text = describe_paper_arithmetic(config_of("gpt3_xl_bigmac").model);

  EXPECT_THAT(text, HasSubstr("3.73 B"));
  EXPECT_THAT(text, HasSubstr("3490.67 TFLOP"));
  EXPECT_THAT(text, HasSubstr("1488.00 GiB"));
  EXPECT_THAT(text, HasSubstr("3.78 B"));
  EXPECT_THAT(text, HasSubstr("3649.00 TFLOP"));
  EXPECT_THAT(text, HasSubstr("372.00 GiB"));
  EXPECT_EQ(describe_paper_arithmetic(config_of("gpt3_xl_vanilla").model), "");
  EXPECT_EQ(describe_paper_arithmetic(config_of("deepseek_moe_16b").model), "");
}

}  // namespace
}  // namespace switchyard
