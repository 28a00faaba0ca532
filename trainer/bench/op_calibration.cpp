#include <algorithm>
#include <cmath>

#include "kernels/runtime/work_observer.h"
#include "optim/distributed_optimizer.h"
#include "trainer/bench/calibration.h"
#include "trainer/bench/random_batches.h"
#include "trainer/bench/work_clock.h"
#include "trainer/training/session.h"
#include "trainer/training/train_step.h"

namespace switchyard {
namespace {

struct Sample {
  double bytes, seconds;
};
using Samples = std::map<std::string, std::vector<Sample>>;

// Times every op that is not a product. An op that calls others is timed as a whole.
class OpTimer final : public WorkObserver {
 public:
  OpTimer(WorkClock clock, Samples& samples) : clock_(clock), samples_(samples) {}

  void products(const Products&) override { is_product_ = true; }
  void attention(const AttentionProducts&) override { is_product_ = true; }
  void begin_op(const char* op, int64_t bytes) override {
    if (depth_++ > 0) return;
    op_ = op;
    bytes_ = static_cast<double>(bytes);
    counts_ = !std::exchange(is_product_, false);
    begin_ = clock_.now();
  }
  void end_op() override {
    if (--depth_ > 0) return;
    const double end = clock_.now();
    if (counts_) samples_[op_].push_back({bytes_, end - begin_});
  }

 private:
  WorkClock clock_;
  Samples& samples_;
  int depth_ = 0;
  const char* op_ = nullptr;
  double bytes_ = 0.0, begin_ = 0.0;
  bool is_product_ = false, counts_ = false;
};

// Models that between them use the ops of all structures and options. They are small, and not
// those of any experiment file.
RunConfig model_of(Structure structure, int64_t hidden, int64_t seq_len, int num_ranks) {
  RunConfig config;
  ModelConfig& m = config.model;
  m.structure = structure;
  m.vocab_size = 8 * hidden;
  m.seq_len = seq_len;
  m.hidden = hidden;
  m.num_layers = 1;
  m.head_dim = 32;
  m.num_heads = m.num_kv_heads = static_cast<int>(hidden / m.head_dim);
  m.num_experts = 8 * num_ranks;
  m.router.top_k = 4;
  // Every step has as many rows, so that the one before has touched its memory: an op that writes
  // to new pages takes ten times as long.
  m.router.force_balanced = true;
  m.expert_ffn_hidden = structure == Structure::bigmac ? hidden : hidden / 4;
  if (structure == Structure::bigmac) {
    m.latent = hidden / 4;
    m.qk_norm = QkNormKind::head;
    m.num_shared_experts = 1;
    m.shared_expert_ffn_hidden = hidden / 2;
  } else {
    m.position = Position::learned;
    m.norm = Norm::layer_norm;
    m.bias = Biases::all;
    m.activation = Activation::gelu;
    m.router.capacity_factor = 1.2;
  }
  config.parallel.ep = num_ranks;
  config.train.micro_batch_size = 2;
  config.train.global_batch_size = 2 * num_ranks;
  return config;
}

void time_steps(MpiRuntime& mpi, RunConfig config, const std::string& device, int threads,
                Samples& samples) {
  config.run.device = device;
  Session session(mpi, config);
  DistributedOptimizer optimizer(session.stream, config.optimizer, session.model.parameters(),
                                 session.dist);
  TrainStep step(session.stream, session.model, optimizer, session.dist);
  const int64_t tokens = config.train.global_batch_size * config.model.seq_len;
  OpTimer timer(WorkClock(session.stream, threads), samples);
  constexpr int64_t kWarmup = 1, kSteps = 3;
  for (int64_t i = 0; i < kSteps; ++i) {
    const std::vector<MicroBatch> batches = random_batches(config, session.dist, i);
    session.stream.set_observer(i < kWarmup ? nullptr : &timer);
    step.run(batches, {.targets = tokens, .tokens = tokens}, config.optimizer.lr);
  }
  session.stream.set_observer(nullptr);
}

// A point per power of two of the bytes, with the median of the samples' rates.
ByteTimes points_of(std::vector<Sample> samples) {
  std::map<int, std::vector<Sample>> bins;
  for (const Sample& s : samples) bins[std::ilogb(s.bytes)].push_back(s);
  ByteTimes times;
  for (auto& [exponent, bin] : bins) {
    const auto middle = bin.begin() + std::ssize(bin) / 2;
    std::ranges::nth_element(bin, middle, {}, [](const Sample& s) { return s.seconds / s.bytes; });
    const double bytes = 1.5 * std::exp2(exponent);
    times.bytes.push_back(bytes);
    times.seconds.push_back(bytes * middle->seconds / middle->bytes);
  }
  return times;
}

}  // namespace

std::map<std::string, ByteTimes> calibrate_ops(MpiRuntime& mpi, const std::string& device,
                                               int threads) {
  Samples samples;
  for (const Structure structure : {Structure::bigmac, Structure::fine_grained}) {
    for (const auto& [hidden, seq_len] : {std::pair{128, 128}, {256, 256}, {512, 1024}}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        RunConfig config = model_of(structure, hidden, seq_len, mpi.world_size());
        config.run.compute_dtype = dtype;
        if (structure == Structure::fine_grained) config.optimizer.type = OptimizerType::sgd;
        time_steps(mpi, config, device, threads, samples);
      }
    }
  }
  std::map<std::string, ByteTimes> times;
  for (auto& [name, of_op] : samples) {
    std::erase_if(of_op, [](const Sample& s) { return s.bytes <= 0.0 || s.seconds <= 0.0; });
    if (!of_op.empty()) times[name] = points_of(std::move(of_op));
  }
  return times;
}

}  // namespace switchyard
