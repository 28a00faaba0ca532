// Every layer against central finite differences in f32. With values near one and a step of 1e-2
// the differences themselves are good to about 1e-3 of the largest gradient: truncation of order
// step^2, and rounding of order 1e-7 / step. Bounds are a few times that.
#include <gtest/gtest.h>

#include "layers/attention.h"
#include "layers/embedding.h"
#include "layers/feed_forward.h"
#include "layers/linear.h"
#include "layers/lm_head.h"
#include "layers/moe.h"
#include "layers/norm.h"
#include "tests/support/model_fixture.h"

namespace switchyard {
namespace {

using test::gradient_error;
using test::LayerBench;
using test::tiny_model;

constexpr double kBound = 4e-3;

// Checks the gradient of <r, layer(x)> with respect to x and to every parameter in the store.
//   forward   computes y and returns the scalar
//   backward  fills dx and the parameters' gradients
void expect_gradients(LayerBench& bench, Tensor& x, const Tensor& dx,
                      const std::function<double()>& scalar, const std::function<void()>& backward,
                      double bound = kBound, float step = 1e-2f) {
  bench.store.zero_grads(bench.stream);
  backward();

  EXPECT_LT(gradient_error(x, dx, scalar, step), bound) << "by the input";
  for (Parameter& p : bench.store.parameters()) {
    const Tensor grad = test::make_tensor<float>(p.grad.shape(), test::to_floats(p.grad));
    // The differences are wrong if the step changes which experts are chosen.
    const bool routes = p.spec.name.find("router") != std::string::npos;
    EXPECT_LT(gradient_error(p.value, grad, scalar, routes ? 1e-3f : step), bound)
        << "by " << p.spec.name;
  }
}

// For layers with forward(ctx, x, y, saved) and backward(ctx, dy, saved, dx).
template <class Layer>
void check_layer(LayerBench& bench, Layer& layer, double bound = kBound,
                 const std::function<double(const StepFigures&)>& extra_loss = {},
                 float step = 1e-2f) {
  Tensor x = bench.input();
  const Tensor dy = test::random_tensor(x.shape(), 11);
  Tensor y(x.shape(), DType::f32), dx(x.shape(), DType::f32);
  const auto forward = [&](typename Layer::Saved& saved, StepContext& ctx) {
    bench.statistics = test::statistics_for(bench.config, 1);
    layer.forward(ctx, x, y, saved);
  };
  const auto scalar = [&] {
    StepContext ctx = bench.context();
    typename Layer::Saved saved;
    forward(saved, ctx);
    bench.reset_workspaces();
    return test::inner_product(dy, y) +
           (extra_loss ? extra_loss(bench.statistics.read(bench.stream)) : 0.0);
  };
  const auto backward = [&] {
    StepContext ctx = bench.context();
    typename Layer::Saved saved;
    forward(saved, ctx);
    layer.backward(ctx, dy, saved, dx);
    bench.reset_workspaces();
  };
  expect_gradients(bench, x, dx, scalar, backward, bound, step);
}

TEST(LinearGradient, MatchesFiniteDifferencesWithFusedWeightsAndBiases) {
  LayerBench bench(tiny_model(Structure::dense));
  Parameter& a = bench.build.column_parallel("a", 5, 16, 0.3f);
  Parameter& b = bench.build.column_parallel("b", 3, 16, 0.3f);
  Parameter& bias_a = bench.build.sharded_vector("bias_a", 5, Init::zeros());
  Parameter& bias_b = bench.build.sharded_vector("bias_b", 3, Init::zeros());
  Linear linear(bench.store, {&a, &b}, {&bias_a, &bias_b});
  bench.materialize();
  Tensor x = bench.input();
  const Tensor dy = test::random_tensor({x.shape()[0], 8}, 11);
  Tensor y(dy.shape(), DType::f32), dx(x.shape(), DType::f32);

  expect_gradients(
      bench, x, dx,
      [&] {
        StepContext ctx = bench.context();
        linear.forward(ctx, x, y);
        return test::inner_product(dy, y);
      },
      [&] {
        StepContext ctx = bench.context();
        linear.backward(ctx, dy, x, dx);
      });
}

struct AttentionCase {
  std::string name;
  std::function<void(ModelConfig&)> change;
  bool documents = false;
};

class AttentionGradient : public testing::TestWithParam<AttentionCase> {};

TEST_P(AttentionGradient, MatchesFiniteDifferences) {
  ModelConfig config = tiny_model(Structure::dense);
  GetParam().change(config);
  LayerBench bench(config, DType::f32, GetParam().documents);
  Attention attention(bench.build, "attention");
  bench.materialize();

  check_layer(bench, attention);
}

INSTANTIATE_TEST_SUITE_P(
    Variants, AttentionGradient,
    testing::Values(AttentionCase{"rope", [](ModelConfig&) {}},
                    AttentionCase{"grouped_query", [](ModelConfig& c) { c.num_kv_heads = 2; }},
                    AttentionCase{"qk_norm", [](ModelConfig& c) { c.qk_norm = QkNormKind::head; }},
                    AttentionCase{"qk_norm_of_all_heads",
                                  [](ModelConfig& c) {
                                    c.qk_norm = QkNormKind::projection;
                                    c.num_kv_heads = 2;
                                    c.norm_eps = 0.1;
                                  }},
                    AttentionCase{"learned_with_bias",
                                  [](ModelConfig& c) {
                                    c.position = Position::learned;
                                    c.norm = Norm::layer_norm;
                                    c.bias = Biases::all;
                                  }},
                    AttentionCase{"qkv_bias_without_positions",
                                  [](ModelConfig& c) {
                                    c.position = Position::none;
                                    c.bias = Biases::qkv;
                                  }},
                    AttentionCase{"partial_rotation_with_yarn",
                                  [](ModelConfig& c) {
                                    c.rotary_dim = 4;
                                    c.rope_scaling = {.type = RopeScalingType::yarn,
                                                      .factor = 4.0,
                                                      .original_seq_len = 8};
                                  }},
                    AttentionCase{"document_mask", [](ModelConfig&) {}, true}),
    [](const auto& tested) { return tested.param.name; });

class FeedForwardGradient : public testing::TestWithParam<Activation> {};

TEST_P(FeedForwardGradient, MatchesFiniteDifferences) {
  ModelConfig config = tiny_model(Structure::dense);
  config.activation = GetParam();
  LayerBench bench(config);
  FeedForward layer(bench.build, "ff", config.ffn_hidden, /*bias=*/true, Part::dense_feed_forward);
  bench.materialize();

  // The differences are wrong if the step crosses the kink of relu. A smaller step has more
  // rounding noise, hence the larger bound.
  const bool kink = GetParam() == Activation::relu;
  check_layer(bench, layer, kink ? 1e-2 : kBound, {}, kink ? 1e-3f : 1e-2f);
}

INSTANTIATE_TEST_SUITE_P(Activations, FeedForwardGradient,
                         testing::Values(Activation::swiglu, Activation::gelu, Activation::relu,
                                         Activation::relu2, Activation::silu),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

class NormGradient : public testing::TestWithParam<Norm> {};

TEST_P(NormGradient, MatchesFiniteDifferences) {
  ModelConfig config = tiny_model(Structure::dense);
  config.norm = GetParam();
  LayerBench bench(config);
  NormLayer norm(bench.build, "norm");
  bench.materialize();
  Tensor x = bench.input();
  const Tensor dy = test::random_tensor(x.shape(), 11);
  Tensor y(x.shape(), DType::f32), dx(x.shape(), DType::f32);
  NormLayer::Saved saved;
  const auto scalar = [&] {
    StepContext ctx = bench.context();
    norm.forward(ctx, {.sum = x, .update = {}}, y, saved);
    bench.reset_workspaces();
    return test::inner_product(dy, y);
  };

  expect_gradients(bench, x, dx, scalar, [&] {
    StepContext ctx = bench.context();
    norm.forward(ctx, {.sum = x, .update = {}}, y, saved);
    norm.backward(ctx, dy, saved, dx);
    bench.reset_workspaces();
  });
}

INSTANTIATE_TEST_SUITE_P(Kinds, NormGradient, testing::Values(Norm::rms_norm, Norm::layer_norm),
                         [](const auto& tested) {
                           return tested.param == Norm::rms_norm ? "rms_norm" : "layer_norm";
                         });

struct MoeCase {
  std::string name;
  Structure structure;
  std::function<void(ModelConfig&)> change;
};

class MoeGradient : public testing::TestWithParam<MoeCase> {};

// The scalar includes the balance loss and the z-loss with their coefficients, so that their
// gradients by the router weights, and through the router by x, are compared, too.
TEST_P(MoeGradient, MatchesFiniteDifferencesWithBothRouterLosses) {
  ModelConfig config = tiny_model(GetParam().structure);
  GetParam().change(config);
  LayerBench bench(config);
  MoeLayer layer(bench.build, "moe", 0, ExchangeOptions{});
  bench.materialize(/*seed=*/21);

  check_layer(bench, layer, 1e-2, [&](const StepFigures& figures) {
    return config.router.aux_loss_coef * figures.moe_layers[0].aux_loss +
           config.router.z_loss_coef * figures.moe_layers[0].z_loss;
  });
}

void strong_losses(ModelConfig& c) {
  c.router.aux_loss_coef = 5.0;
  c.router.z_loss_coef = 1.0;
}

INSTANTIATE_TEST_SUITE_P(
    Variants, MoeGradient,
    testing::Values(MoeCase{"vanilla", Structure::vanilla, [](ModelConfig&) {}},
                    MoeCase{"fine_grained", Structure::fine_grained, [](ModelConfig&) {}},
                    MoeCase{"bigmac", Structure::bigmac, [](ModelConfig&) {}},
                    MoeCase{"bigmac_without_shared_experts", Structure::bigmac,
                            [](ModelConfig& c) { c.num_shared_experts = 0; }},
                    MoeCase{"fine_grained_without_shared_experts", Structure::fine_grained,
                            [](ModelConfig& c) { c.num_shared_experts = 0; }},
                    MoeCase{"strong_losses", Structure::bigmac, strong_losses},
                    MoeCase{"global_batch_balance", Structure::bigmac,
                            [](ModelConfig& c) {
                              strong_losses(c);
                              c.router.balance_scope = BalanceScope::global_batch;
                            }},
                    MoeCase{"sigmoid", Structure::fine_grained,
                            [](ModelConfig& c) {
                              strong_losses(c);
                              c.router.score = RouterScore::sigmoid;
                              c.router.routed_scaling_factor = 2.5;
                            }},
                    MoeCase{"expert_groups", Structure::fine_grained,
                            [](ModelConfig& c) {
                              strong_losses(c);
                              c.router.num_groups = 4;
                              c.router.groups_per_token = 2;
                            }},
                    MoeCase{"unnormalized_gelu", Structure::fine_grained,
                            [](ModelConfig& c) {
                              c.router.normalize_topk = false;
                              c.activation = Activation::gelu;
                            }},
                    MoeCase{"shared_expert_gate", Structure::bigmac,
                            [](ModelConfig& c) { c.shared_expert_gate = true; }},
                    MoeCase{"shared_expert_gate_gelu", Structure::fine_grained,
                            [](ModelConfig& c) {
                              c.shared_expert_gate = true;
                              c.activation = Activation::gelu;
                            }},
                    MoeCase{"capacity", Structure::bigmac,
                            [](ModelConfig& c) { c.router.capacity_factor = 1.0; }}),
    [](const auto& tested) { return tested.param.name; });

TEST(RouterGradient, IsZeroWithoutRouterLossesAndMainLossAndNotWithEither) {
  const auto router_gradient = [](double aux, double z) {
    ModelConfig config = tiny_model(Structure::bigmac);
    config.router.aux_loss_coef = aux;
    config.router.z_loss_coef = z;
    LayerBench bench(config);
    MoeLayer layer(bench.build, "moe", 0, ExchangeOptions{});
    bench.materialize();
    const Tensor x = bench.input();
    const Tensor zero(x.shape(), DType::f32);
    Tensor y(x.shape(), DType::f32), dx(x.shape(), DType::f32);
    StepContext ctx = bench.context();
    MoeLayer::Saved saved;
    layer.forward(ctx, x, y, saved);
    layer.backward(ctx, zero, saved, dx);
    double largest = 0.0;
    for (Parameter& p : bench.store.parameters()) {
      if (p.spec.name != "moe.router.weight") continue;
      for (const float g : test::to_floats(p.grad))
        largest = std::max<double>(largest, std::abs(g));
    }
    return largest;
  };

  EXPECT_EQ(router_gradient(0.0, 0.0), 0.0);
  EXPECT_GT(router_gradient(0.01, 0.0), 0.0);
  EXPECT_GT(router_gradient(0.0, 0.01), 0.0);
}

struct HeadCase {
  std::string name;
  bool tied;
  Position position;
};

class EmbeddingAndHeadGradient : public testing::TestWithParam<HeadCase> {};

TEST_P(EmbeddingAndHeadGradient, MatchesFiniteDifferences) {
  ModelConfig config = tiny_model(Structure::dense);
  config.tie_embeddings = GetParam().tied;
  config.position = GetParam().position;
  LayerBench bench(config);
  Embedding embedding(bench.build);
  LmHead head(bench.build, embedding.table());
  bench.materialize();
  bench.batch.targets.data<int32_t>()[3] = -1;  // this token has no target
  Tensor y(bench.input().shape(), DType::f32), dy(y.shape(), DType::f32);
  const auto run = [&](bool backward) {
    StepContext ctx = bench.context();
    bench.statistics = test::statistics_for(config, 0);
    embedding.forward(ctx, y);
    head.loss(ctx, y, backward ? dy.view() : TensorView());
    if (backward) embedding.backward(ctx, dy);
    bench.reset_workspaces();
    return bench.statistics.read(bench.stream).loss;
  };

  bench.store.zero_grads(bench.stream);
  run(true);

  for (Parameter& p : bench.store.parameters()) {
    const Tensor grad = test::make_tensor<float>(p.grad.shape(), test::to_floats(p.grad));
    EXPECT_LT(gradient_error(p.value, grad, [&] { return run(false); }), 2e-2) << p.spec.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, EmbeddingAndHeadGradient,
                         testing::Values(HeadCase{"untied", false, Position::rope},
                                         HeadCase{"tied_learned", true, Position::learned}),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace switchyard
