// The whole model computes the same bits whatever team of threads OpenMP grants.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "layers/transformer.h"
#include "tests/support/every_team.h"
#include "tests/support/model_fixture.h"

namespace switchyard {
namespace {

using test::TeamCase;

// Wide enough for a library to share products out among threads.
ModelConfig wide_model(Structure structure) {
  ModelConfig config = test::tiny_model(structure);
  config.seq_len = 128;
  config.hidden = 64;
  config.head_dim = 16;
  config.num_kv_heads = 2;
  config.ffn_hidden = 256;
  config.vocab_size = 257;
  config.init_std = 0.05;
  return config;
}

// Every gradient, the losses, and the logits of a pass without and with a cache.
std::vector<std::vector<float>> results(const ModelConfig& config, DType dtype) {
  Stream stream;
  DistributedContext dist;
  Transformer model(stream, config, dist, {.compute_dtype = dtype, .seed = 5});
  StepStatistics statistics = test::statistics_for(config, model.num_moe_layers());
  const MicroBatch batch = test::synthetic_batch(config, 0, 4);
  Workspace saved, scratch;
  StepContext ctx{.stream = stream,
                  .saved = saved,
                  .scratch = scratch,
                  .dist = dist,
                  .batch = batch,
                  .scales = test::size_of(config, 4).loss_scales(),
                  .statistics = &statistics};
  Transformer::Pass pass;
  std::vector<std::vector<float>> all;

  model.forward(ctx, pass);
  model.backward(ctx, pass);
  for (const Parameter& p : model.parameters().parameters()) all.push_back(test::to_floats(p.grad));
  all.push_back({static_cast<float>(statistics.read(stream).loss)});
  Tensor logits({4 * config.seq_len, config.vocab_size}, DType::f32);
  model.forward_logits(ctx, logits);
  all.push_back(test::to_floats(logits));
  Tensor last({4, config.vocab_size}, DType::f32);
  KvCache cache = model.make_cache(4, config.seq_len);
  model.forward_cached(ctx, cache, last);
  all.push_back(test::to_floats(last));
  return all;
}

class ModelTeamTest : public testing::TestWithParam<std::tuple<Structure, DType>> {};

TEST_P(ModelTeamTest, WhateverIsGrantedTheBitsAreTheSame) {
  const auto [structure, dtype] = GetParam();
  const ModelConfig config = wide_model(structure);
  const std::vector<TeamCase> teams = test::every_team();
  std::vector<std::vector<float>> expected;
  teams.front().run([&, dtype = dtype] { expected = results(config, dtype); });

  for (const TeamCase& team : teams) {
    std::vector<std::vector<float>> actual;
    team.run([&, dtype = dtype] { actual = results(config, dtype); });

    EXPECT_TRUE(actual == expected) << team.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelTeamTest,
                         testing::Combine(testing::Values(Structure::dense, Structure::vanilla,
                                                          Structure::fine_grained,
                                                          Structure::bigmac),
                                          testing::Values(DType::f32, DType::bf16)),
                         [](const auto& tested) {
                           return std::string(to_string(std::get<0>(tested.param))) + "_" +
                                  std::string(to_string(std::get<1>(tested.param)));
                         });

}  // namespace
}  // namespace switchyard
