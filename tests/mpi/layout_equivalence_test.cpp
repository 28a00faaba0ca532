// The test that matters most: one seed and one global batch on many layouts. Every layout must give
// the losses, gradient norms and parameters of one rank. SGD in f32 shows wrong gradient scales at
// once, where Adam would hide them. The one rank is always a CPU; the layouts run on the device of
// the tests, which all ranks share.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "optim/distributed_optimizer.h"
#include "parallel/distributed_context.h"
#include "tests/support/bf16_scope.h"
#include "tests/support/model_fixture.h"
#include "tests/support/test_device.h"
#include "trainer/training/train_step.h"

namespace switchyard {
namespace {

using test::test_mpi;

bool is_on_cpu() { return test::device().kind == DeviceKind::cpu; }

constexpr int64_t kGlobalBatch = 32;  // sequences: 4 micro-batches of one on each of 8 dp ranks
// Devices may be emulated, and emulation is slow.
int num_steps() { return is_on_cpu() ? 10 : 2; }

struct Layout {
  int tp, ep, dp;
  int world() const { return tp * dp; }
};
constexpr Layout kLayouts[] = {{1, 1, 1}, {1, 1, 2}, {1, 2, 2}, {1, 4, 4}, {2, 1, 1},
                               {2, 2, 1}, {2, 4, 2}, {4, 4, 1}, {2, 8, 4}, {1, 8, 8}};

OptimizerConfig sgd() {
  OptimizerConfig config;
  config.type = OptimizerType::sgd;
  config.lr = 0.1;
  config.momentum = 0.9;
  config.clip = 2.0;  // small enough to clip in some of the steps
  config.weight_decay = 0.01;
  return config;
}

OptimizerConfig adamw() {
  OptimizerConfig config;
  config.type = OptimizerType::adamw;
  config.lr = 3e-3;
  // Large compared with the rounding errors of gradients: where a gradient is zero except for
  // rounding, Adam would otherwise make full steps of the error.
  config.eps = 1e-4;
  return config;
}

OptimizerConfig muon() {
  OptimizerConfig config = adamw();
  config.type = OptimizerType::muon;
  return config;
}

// Ties between equal scores must stay ties, so the learning rate is zero.
OptimizerConfig frozen_router_sgd() {
  OptimizerConfig config = sgd();
  config.lr = 0.0;
  return config;
}

struct Run {
  std::vector<StepReport> reports;
  // This rank's box of every parameter.
  std::vector<ParameterSpec> specs;
  std::vector<std::vector<float>> values;
};

// Variations of the model and its data.
struct Variant {
  TransformerOptions options;
  bool documents = false;
  int ranks_per_host = 0;    // 0: hosts are as they are
  bool zero_router = false;  // every token then chooses the first top_k experts
};

void zero_router_weights(Transformer& model) {
  for (Parameter& p : model.parameters().parameters()) {
    if (p.spec.name.find("router") == std::string::npos) continue;
    std::fill_n(p.value.data<float>(), p.value.num_elements(), 0.0f);
  }
}

Run train(Device device, const DistributedContext& dist, const ModelConfig& model_config,
          const OptimizerConfig& optimizer_config, int accumulation, const Variant& variant) {
  Stream stream(device);
  Transformer model(stream, model_config, dist, variant.options);
  if (variant.zero_router) zero_router_weights(model);
  DistributedOptimizer optimizer(stream, optimizer_config, model.parameters(), dist);
  TrainStep step(stream, model, optimizer, dist);
  const int64_t per_rank = kGlobalBatch / dist.layout().dp();
  const int64_t micro_batch_size = per_rank / accumulation;
  const int64_t first = dist.dp().rank() * per_rank;

  Run run;
  for (int i = 0; i < num_steps(); ++i) {
    std::vector<MicroBatch> batches;
    for (int64_t s = 0; s < per_rank; s += micro_batch_size) {
      batches.push_back(test::synthetic_batch(model_config, i * kGlobalBatch + first + s,
                                              micro_batch_size, variant.documents));
    }
    run.reports.push_back(
        step.run(batches, test::size_of(model_config, kGlobalBatch), optimizer_config.lr));
  }
  model.parameters().await_values(stream);
  for (const Parameter& p : model.parameters().parameters()) {
    run.specs.push_back(p.spec);
    run.values.push_back(test::to_floats(p.value));
  }
  return run;
}

// The part of a whole tensor that lies in the box of `spec`.
std::vector<float> box_of(const std::vector<float>& whole, const ParameterSpec& spec) {
  std::vector<float> box;
  const auto dim = [&](const Shape& shape, int i) {
    const int at = i - (3 - shape.rank());
    return at >= 0 ? shape[at] : int64_t{-1};
  };
  const auto extent = [&](int i) { return std::max<int64_t>(dim(spec.extent, i), i < 0 ? 0 : 1); };
  const auto offset = [&](int i) { return std::max<int64_t>(dim(spec.offset, i), 0); };
  const auto global = [&](int i) { return std::max<int64_t>(dim(spec.global_shape, i), 1); };
  for (int64_t a = 0; a < extent(0); ++a) {
    for (int64_t b = 0; b < extent(1); ++b) {
      for (int64_t c = 0; c < extent(2); ++c) {
        const int64_t row = (offset(0) + a) * global(1) + offset(1) + b;
        box.push_back(whole[static_cast<size_t>(row * global(2) + offset(2) + c)]);
      }
    }
  }
  return box;
}

// Largest difference over the largest value, or over 1e-3 if that is larger: the bias of the keys
// stays near zero because its gradient is zero except for rounding.
double parameter_error(const std::vector<float>& values, const std::vector<float>& expected) {
  double difference = values.size() == expected.size() ? 0.0 : INFINITY, scale = 1e-3;
  for (size_t i = 0; i < std::min(values.size(), expected.size()); ++i) {
    const double d = std::abs(static_cast<double>(values[i]) - expected[i]);
    if (!(d <= difference)) difference = std::isnan(d) ? INFINITY : d;
    scale = std::max(scale, std::abs(static_cast<double>(expected[i])));
  }
  return difference / scale;
}

struct Bounds {
  double loss, parameter, norm;
  double counts = 0.0;  // of tokens of an expert, as a share of the mean over experts
};
constexpr Bounds kOtherBackendBounds{.loss = 1e-5, .parameter = 1e-5, .norm = 1e-5};

void expect_equal_counts(const GlobalExpertCounts& counts, const GlobalExpertCounts& expected,
                         double share) {
  ASSERT_EQ(counts.size(), expected.size());
  for (size_t layer = 0; layer < counts.size(); ++layer) {
    const std::vector<double>& wanted = expected[layer];
    const double mean = std::accumulate(wanted.begin(), wanted.end(), 0.0) / wanted.size();
    for (size_t e = 0; e < wanted.size(); ++e) {
      EXPECT_NEAR(counts[layer][e], wanted[e], share * mean)
          << "layer " << layer << " expert " << e;
    }
  }
}

void expect_equal_runs(const Run& run, const Run& reference, const Bounds& bounds) {
  for (int i = 0; i < num_steps(); ++i) {
    const StepReport &a = run.reports[static_cast<size_t>(i)],
                     &b = reference.reports[static_cast<size_t>(i)];
    EXPECT_NEAR(a.metrics.loss, b.metrics.loss, bounds.loss) << "step " << i;
    // It is 1 with balanced experts, and a dense model has none.
    EXPECT_NEAR(a.metrics.aux_loss, b.metrics.aux_loss,
                bounds.loss * std::max(1.0, b.metrics.aux_loss))
        << "step " << i;
    EXPECT_NEAR(a.metrics.z_loss, b.metrics.z_loss, 10 * bounds.loss) << "step " << i;
    EXPECT_NEAR(a.metrics.grad_norm, b.metrics.grad_norm, bounds.norm * b.metrics.grad_norm)
        << "step " << i;
    EXPECT_EQ(a.metrics.dropped_tokens, b.metrics.dropped_tokens) << "step " << i;
    expect_equal_counts(a.expert_counts, b.expert_counts, bounds.counts);
  }
  for (size_t p = 0; p < run.specs.size(); ++p) {
    EXPECT_LT(parameter_error(run.values[p], box_of(reference.values[p], run.specs[p])),
              bounds.parameter)
        << run.specs[p].name;
  }
}

// Expects the same bits on every rank.
void expect_identical_on_all_ranks(const DistributedContext& dist, const Run& run) {
  Stream stream;
  for (const StepReport& report : run.reports) {
    double lowest = report.metrics.grad_norm, highest = report.metrics.grad_norm;
    dist.world().all_reduce(stream, view_of(std::span(&lowest, 1)), ReduceOp::min);
    dist.world().all_reduce(stream, view_of(std::span(&highest, 1)), ReduceOp::max);
    EXPECT_EQ(lowest, highest);
  }
}

HostOptions hosts_of(const Variant& variant, int world) {
  HostOptions hosts{.groups = variant.options.exchange.deduplicate == Deduplicate::host};
  for (int i = 0; i < world && variant.ranks_per_host > 0; ++i) {
    hosts.hosts.push_back(i / variant.ranks_per_host);
  }
  return hosts;
}

void compare_layouts(const ModelConfig& model, const OptimizerConfig& optimizer, int accumulation,
                     const Bounds& bounds, Variant variant = {}) {
  variant.options.seed = 42;
  const DistributedContext alone;
  const Run reference = train(Device{}, alone, model, optimizer, 1, variant);
  int compared = 0;
  for (const Layout& layout : kLayouts) {
    if (layout.world() != test_mpi().world_size()) continue;
    ++compared;
    SCOPED_TRACE(testing::Message() << "tp " << layout.tp << " ep " << layout.ep << " dp "
                                    << layout.dp << " accumulation " << accumulation);
    const DistributedContext dist(test_mpi(), ParallelLayout(layout.world(), layout.tp, layout.ep),
                                  test::device(), hosts_of(variant, layout.world()));
    const Run run = train(test::device(), dist, model, optimizer, accumulation, variant);
    // The backends sum in different orders.
    expect_equal_runs(run, reference, is_on_cpu() ? bounds : kOtherBackendBounds);
    expect_identical_on_all_ranks(dist, run);
  }
  EXPECT_GT(compared, 0) << "no layout has " << test_mpi().world_size() << " ranks";
}

class LayoutTest : public testing::TestWithParam<std::tuple<Structure, int>> {
 protected:
  ModelConfig model() const { return test::tiny_model(std::get<0>(GetParam())); }
  int accumulation() const { return std::get<1>(GetParam()); }
};

constexpr Bounds kSgdBounds{.loss = 1e-6, .parameter = 1e-5, .norm = 1e-6};
constexpr Bounds kAdamBounds{.loss = 1e-5, .parameter = 1e-5, .norm = 1e-5};
// The order of a sum may turn the rounding of any value to bf16's 8 bits, a rounding the choice of
// an expert, and Adam makes full steps of small gradients: losses and norms are held more closely.
constexpr Bounds kBf16Bounds{.loss = 1e-2, .parameter = 0.15, .norm = 2e-2, .counts = 0.25};

TEST_P(LayoutTest, SgdGivesTheResultOfOneRank) {
  compare_layouts(model(), sgd(), accumulation(), kSgdBounds);
}

TEST_P(LayoutTest, AdamWGivesTheResultOfOneRank) {
  compare_layouts(model(), adamw(), accumulation(), kAdamBounds);
}

TEST_P(LayoutTest, Bf16GivesTheResultOfOneRankByEitherMethod) {
  for (const Bf16Method method : {Bf16Method::native, Bf16Method::widened}) {
    if (method == Bf16Method::native && !has_native_bf16()) continue;
    SCOPED_TRACE(to_string(method));
    const test::Bf16Scope scope(method);
    compare_layouts(model(), adamw(), accumulation(), kBf16Bounds,
                    {.options = {.compute_dtype = DType::bf16}});
  }
}

TEST_P(LayoutTest, MuonGivesTheResultOfOneRank) {
  compare_layouts(model(), muon(), accumulation(), kAdamBounds);
}

INSTANTIATE_TEST_SUITE_P(Structures, LayoutTest,
                         testing::Combine(testing::Values(Structure::dense, Structure::vanilla,
                                                          Structure::fine_grained,
                                                          Structure::bigmac),
                                          testing::Values(1, 4)),
                         [](const auto& tested) {
                           return std::string(to_string(std::get<0>(tested.param))) +
                                  "_accumulation_" + std::to_string(std::get<1>(tested.param));
                         });

TEST(LayoutVariantTest, GptStyleWithTiedEmbeddings) {
  ModelConfig model = test::tiny_model(Structure::fine_grained);
  model.position = Position::learned;
  model.norm = Norm::layer_norm;
  model.bias = Biases::all;
  model.tie_embeddings = true;
  model.activation = Activation::gelu;
  model.first_dense_layers = 1;
  compare_layouts(model, sgd(), 1, kSgdBounds);
}

TEST(LayoutVariantTest, GlobalBatchBalanceWithAccumulation) {
  ModelConfig model = test::tiny_model(Structure::bigmac);
  model.router.balance_scope = BalanceScope::global_batch;
  model.router.aux_loss_coef = 1.0;
  compare_layouts(model, sgd(), 4, kSgdBounds);
}

// Hidden matrices, embeddings, norms and biases of every kind share buckets. The buckets end at
// other parameters on the rank with the smaller part of the vocabulary.
TEST(LayoutVariantTest, MuonInGptStyleWithTiedEmbeddingsAndBuckets) {
  ModelConfig model = test::tiny_model(Structure::fine_grained);
  model.position = Position::learned;
  model.norm = Norm::layer_norm;
  model.bias = Biases::all;
  model.tie_embeddings = true;
  model.first_dense_layers = 1;
  OptimizerConfig config = muon();
  config.eps = 1e-2;  // AdamW moves the bias of the keys, whose gradient is rounding errors alone
  for (const int64_t bucket_elements : {int64_t{1}, int64_t{700}}) {
    compare_layouts(model, config, 1, kAdamBounds,
                    {.options = {.bucket_elements = bucket_elements}});
  }
}

TEST(LayoutVariantTest, CapacityDropsTheSameTokens) {
  for (const DropPolicy policy : {DropPolicy::lowest_weight, DropPolicy::latest_position}) {
    ModelConfig model = test::tiny_model(Structure::bigmac);
    model.router.capacity_factor = 1.0;
    model.router.drop_policy = policy;
    compare_layouts(model, sgd(), 4, kSgdBounds);
  }
}

TEST(LayoutVariantTest, SigmoidRouterWithLossFreeBalancing) {
  ModelConfig model = test::tiny_model(Structure::fine_grained);
  model.router.score = RouterScore::sigmoid;
  model.router.bias_update_rate = 0.01;
  model.router.aux_loss_coef = 0.0;
  compare_layouts(model, sgd(), 4, kSgdBounds);
}

TEST(LayoutVariantTest, GroupedQueriesQkNormAndDocuments) {
  ModelConfig model = test::tiny_model(Structure::bigmac);
  model.qk_norm = QkNormKind::head;
  compare_layouts(model, sgd(), 1, kSgdBounds, {.options = {}, .documents = true});
}

TEST(LayoutVariantTest, QkvBiasesAndPartialRotation) {
  ModelConfig model = test::tiny_model(Structure::vanilla);
  model.bias = Biases::qkv;
  model.rotary_dim = 2;
  model.rope_scaling = {.type = RopeScalingType::yarn, .factor = 4.0, .original_seq_len = 8};
  compare_layouts(model, sgd(), 1, kSgdBounds);
}

// The norms' sums cross ranks that have different heads, and gates are split over tokens.
TEST(LayoutVariantTest, QkNormOfAllHeadsSharedExpertGateAndExpertGroups) {
  ModelConfig model = test::tiny_model(Structure::fine_grained);
  model.qk_norm = QkNormKind::projection;
  model.shared_expert_gate = true;
  model.router.num_groups = 4;
  model.router.groups_per_token = 2;
  compare_layouts(model, sgd(), 1, kSgdBounds);
  compare_layouts(model, muon(), 1, kAdamBounds);
}

TEST(LayoutVariantTest, RecomputationAndNoDeduplication) {
  const ModelConfig model = test::tiny_model(Structure::bigmac);
  compare_layouts(model, sgd(), 4, kSgdBounds,
                  {.options = {.exchange = {.deduplicate = Deduplicate::none}, .recompute = true}});
}

// Ep groups of four and eight ranks then have two or four hosts.
TEST(LayoutVariantTest, DeduplicationByHost) {
  constexpr ExchangeOptions by_host{.deduplicate = Deduplicate::host, .chunks = 3};
  compare_layouts(test::tiny_model(Structure::fine_grained), sgd(), 4, kSgdBounds,
                  {.options = {.exchange = by_host}, .ranks_per_host = 2});
  ModelConfig model = test::tiny_model(Structure::bigmac);
  model.router.capacity_factor = 1.0;
  compare_layouts(model, sgd(), 1, kSgdBounds,
                  {.options = {.exchange = by_host, .recompute = true}, .ranks_per_host = 2});
}

TEST(LayoutVariantTest, Bf16WithDeduplicationByHost) {
  const Variant variant{
      .options = {.compute_dtype = DType::bf16, .exchange = {.deduplicate = Deduplicate::host}},
      .ranks_per_host = 2};
  compare_layouts(test::tiny_model(Structure::bigmac), adamw(), 1, kBf16Bounds, variant);
}

// Three chunks do not divide the tokens evenly.
TEST(LayoutVariantTest, ExchangeInChunks) {
  for (const Structure structure :
       {Structure::vanilla, Structure::fine_grained, Structure::bigmac}) {
    compare_layouts(test::tiny_model(structure), sgd(), 1, kSgdBounds,
                    {.options = {.exchange = {.chunks = 3}}});
  }
}

// There is a bucket per stage and group; the table of tied embeddings is final last. Where
// transfers overlap other work, buckets are reduced during the backward pass.
TEST(LayoutVariantTest, GradientsInBuckets) {
  ModelConfig model = test::tiny_model(Structure::bigmac);
  model.tie_embeddings = true;
  compare_layouts(model, sgd(), 4, kSgdBounds,
                  {.options = {.recompute = true, .bucket_elements = 1}});
}

// With k = 1 all tokens go to one expert, so all other experts and all ranks but one are empty.
TEST(DegenerateRoutingTest, AllTokensToTheSameExperts) {
  for (const Structure structure :
       {Structure::vanilla, Structure::fine_grained, Structure::bigmac}) {
    ModelConfig model = test::tiny_model(structure);
    model.router.aux_loss_coef = 0.0;
    model.router.z_loss_coef = 0.0;
    compare_layouts(model, frozen_router_sgd(), 4, kSgdBounds,
                    {.options = {}, .zero_router = true});
  }
}

// There is one token per micro-batch on eight dp ranks, so fewer experts than ranks have tokens.
TEST(DegenerateRoutingTest, OneTokenPerMicroBatch) {
  ModelConfig model = test::tiny_model(Structure::bigmac);
  model.seq_len = 1;
  compare_layouts(model, sgd(), 4, kSgdBounds);
}

}  // namespace
}  // namespace switchyard
