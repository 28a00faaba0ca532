#include "trainer/inference/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/model_fixture.h"

namespace switchyard {
namespace {

struct Generator {
  Generator() : model(stream, test::tiny_model(Structure::bigmac), dist, {.seed = 5}) {}

  GenerationRequest request(double temperature, uint64_t seed) const {
    GenerationRequest request{
        .prompt = {4, 19, 7}, .max_tokens = 5, .num_samples = 1, .seed = seed};
    request.sampling.temperature = temperature;
    return request;
  }
  std::vector<std::vector<int32_t>> generate_with(const GenerationRequest& request) {
    return generate(stream, model, dist, request);
  }

  // Logits of the token after `tokens`.
  std::vector<float> logits_behind(const std::vector<int32_t>& tokens) {
    MicroBatch batch;
    batch.num_sequences = 1;
    batch.seq_len = static_cast<int64_t>(tokens.size());
    batch.tokens = test::make_tensor<int32_t>({1, batch.seq_len}, tokens);
    Workspace saved, scratch;
    StepContext ctx{.stream = stream,
                    .saved = saved,
                    .scratch = scratch,
                    .dist = dist,
                    .batch = batch,
                    .scales = {}};
    Tensor logits({batch.seq_len, model.config().vocab_size}, DType::f32);
    model.forward_logits(ctx, logits);
    return test::to_floats(logits.view().rows(batch.seq_len - 1, 1));
  }

  Stream stream;
  DistributedContext dist;
  Transformer model;
};

TEST(Generate, AtTemperatureZeroEveryTokenIsTheLikeliest) {
  Generator generator;
  const GenerationRequest request = generator.request(0.0, 1);

  const std::vector<int32_t> generated = generator.generate_with(request)[0];

  std::vector<int32_t> tokens = request.prompt;
  ASSERT_EQ(generated.size(), 5u);
  for (const int32_t token : generated) {
    const std::vector<float> logits = generator.logits_behind(tokens);
    EXPECT_EQ(token, std::max_element(logits.begin(), logits.end()) - logits.begin());
    tokens.push_back(token);
  }
}

TEST(Generate, AModelThatHasDivergedIsAnError) {
  Generator generator;
  const auto norm = std::ranges::find(generator.model.parameters().parameters(), "norm.weight",
                                      [](const Parameter& p) { return p.spec.name; });
  norm->value.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();

  for (const double temperature : {0.0, 1.0}) {
    EXPECT_THAT(test::error_of([&] { generator.generate_with(generator.request(temperature, 1)); }),
                testing::HasSubstr("the logits behind token 3 are not finite"));
  }
}

TEST(Generate, IdsBeyondTheTokenizersAreNeverDrawn) {
  Generator generator;
  std::vector<float> logits = generator.logits_behind(generator.request(0.0, 1).prompt);
  const auto likeliest = std::max_element(logits.begin(), logits.end()) - logits.begin();
  ASSERT_GT(likeliest, 1);

  for (const double temperature : {0.0, 1.0, 1e9}) {
    GenerationRequest request = generator.request(temperature, 1);
    request.vocab_size = likeliest;
    request.num_samples = 50;
    for (const std::vector<int32_t>& sample : generator.generate_with(request)) {
      EXPECT_LT(*std::max_element(sample.begin(), sample.end()), likeliest);
    }
  }
}

TEST(Generate, AtTemperatureZeroAPaddedVocabularyGivesTheLikeliestTokenOfTheOthers) {
  Generator generator;
  GenerationRequest request = generator.request(0.0, 1);
  const std::vector<float> logits = generator.logits_behind(request.prompt);
  request.vocab_size = std::max_element(logits.begin(), logits.end()) - logits.begin();
  request.max_tokens = 1;

  const std::vector<int32_t> generated = generator.generate_with(request)[0];

  const auto end = logits.begin() + request.vocab_size;
  EXPECT_EQ(generated[0], std::max_element(logits.begin(), end) - logits.begin());
}

TEST(Generate, RefusesATokenizerWithMoreTokensThanTheModel) {
  Generator generator;
  GenerationRequest request = generator.request(0.0, 1);
  request.vocab_size = generator.model.config().vocab_size + 1;

  EXPECT_THAT([&] { generator.generate_with(request); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("the model only")));
}

TEST(Generate, ASeedGivesTheSameTokensAgainAndAnotherOneOthers) {
  Generator generator;

  const auto once = generator.generate_with(generator.request(1.0, 1));
  const auto again = generator.generate_with(generator.request(1.0, 1));
  const auto other = generator.generate_with(generator.request(1.0, 2));

  EXPECT_EQ(once, again);
  EXPECT_NE(once, other);
}

TEST(Generate, ASampleDoesNotDependOnHowManyThereAre) {
  Generator generator;
  GenerationRequest request = generator.request(1.0, 1);
  const auto one = generator.generate_with(request);
  request.num_samples = 3;

  const auto three = generator.generate_with(request);

  EXPECT_EQ(three[0], one[0]);
  EXPECT_NE(three[1], three[0]);
}

TEST(Generate, SamplesHaveTheProbabilitiesOfTheModel) {
  constexpr int kSamples = 4000;
  Generator generator;
  GenerationRequest request = generator.request(1.0, 1);
  request.max_tokens = 1;
  request.num_samples = kSamples;
  const std::vector<float> logits = generator.logits_behind(request.prompt);
  std::vector<double> probabilities;
  for (const float logit : logits) probabilities.push_back(std::exp(double{logit}));
  const double sum = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);

  std::vector<int> counts(logits.size());
  for (const std::vector<int32_t>& sample : generator.generate_with(request)) {
    ++counts.at(static_cast<size_t>(sample.at(0)));
  }

  // Counts are binomial. One seed in two million exceeds five standard deviations. The count of a
  // rare token is nearly Poisson-distributed and exceeds them more often; hence the added 1.
  for (size_t token = 0; token < counts.size(); ++token) {
    const double p = probabilities[token] / sum, deviation = std::sqrt(kSamples * p * (1.0 - p));
    EXPECT_NEAR(counts[token], kSamples * p, 5.0 * deviation + 1.0) << "token " << token;
  }
}

}  // namespace
}  // namespace switchyard
