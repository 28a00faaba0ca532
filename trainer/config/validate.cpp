#include <fmt/format.h>

#include <span>

#include "kernels/decode/hash_encode.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/cuda_limits.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/integers.h"
#include "trainer/config/config_error.h"
#include "trainer/config/config_reader.h"

namespace switchyard {
namespace {

constexpr int64_t kSecondsOfAYear = 31'536'000;

// Collects the settings that cannot work, each with the origin of the key that should change.
class Checks {
 public:
  Checks(const LoadedConfig& loaded, int world_size)
      : loaded_(loaded), config_(loaded.config), world_size_(world_size) {}

  std::vector<std::string> run(std::span<const ConfigProblem> others) {
    sizes();
    layout();
    model();
    if (config_.model.structure != Structure::dense) experts();
    if (config_.run.device.starts_with("cuda")) cuda();
    batches();
    sources();
    optimizer();
    schedule();
    hash();
    decode();
    for (const ConfigProblem& other : others) expect(false, other.key, "{}", other.text);
    return std::move(problems_);
  }

 private:
  template <class... Args>
  void expect(bool ok, const std::string& key, fmt::format_string<Args...> format, Args&&... args) {
    if (ok) return;
    const auto origin = loaded_.origins.find(key);
    const std::string place = origin == loaded_.origins.end() ? "default value" : origin->second;
    problems_.push_back(
        fmt::format("{}: {}: {}", place, key, fmt::format(format, std::forward<Args>(args)...)));
  }

  void divides(int64_t divisor, const std::string& divisor_key, int64_t number,
               const std::string& key) {
    expect(divisor > 0 && number % divisor == 0, key,
           "{} is not divisible by {} = {}; choose a multiple, or another {}", number, divisor_key,
           divisor, divisor_key);
  }

  void sizes() {
    const ModelConfig& m = config_.model;
    expect(m.seq_len > 0, "model.seq_len", "is missing: the context length");
    expect(m.hidden > 0, "model.hidden", "is missing: the width of the model");
    expect(m.num_layers > 0, "model.num_layers", "is missing: the number of blocks");
    expect(m.num_heads > 0, "model.num_heads", "is missing: the number of query heads");
    expect(m.num_heads == 0 || m.head_dim > 0, "model.head_dim",
           "is missing, and hidden = {} is not divisible by num_heads = {}; give one of the three "
           "another value",
           m.hidden, m.num_heads);
    expect(!config_.run.dir.empty(), "run.dir", "is missing: where the run keeps its files");
    expect(config_.run.collective_timeout <= kSecondsOfAYear, "run.collective_timeout",
           "{} seconds are more than a year; choose at most {}", config_.run.collective_timeout,
           kSecondsOfAYear);
    try {
      parse_device(config_.run.device);
    } catch (const Error& error) {
      expect(false, "run.device", "{}", error.what());
    }
  }

  void layout() {
    const ParallelSection& p = config_.parallel;
    expect(world_size_ % p.tp == 0, "parallel.tp",
           "{} does not divide the {} ranks; choose a divisor, or start another number of ranks",
           p.tp, world_size_);
    expect(world_size_ % p.ep == 0, "parallel.ep",
           "{} does not divide the {} ranks (dp * tp); choose a divisor, or start another number "
           "of ranks",
           p.ep, world_size_);
    if (config_.model.structure == Structure::dense) {
      expect(p.ep == 1, "parallel.ep", "a dense model has no experts to split; set it to 1");
    }
  }

  void model() {
    const ModelConfig& m = config_.model;
    const int tp = config_.parallel.tp;
    divides(tp, "parallel.tp", m.num_heads, "model.num_heads");
    divides(tp, "parallel.tp", m.num_kv_heads, "model.num_kv_heads");
    if (m.num_kv_heads > 0) {
      divides(m.num_kv_heads, "model.num_kv_heads", m.num_heads, "model.num_heads");
    }
    rope();
    const bool has_dense = m.structure == Structure::dense || m.first_dense_layers > 0;
    expect(!has_dense || m.ffn_hidden > 0, "model.ffn_hidden",
           "is missing: the inner width of dense feed-forwards");
    if (has_dense) divides(tp, "parallel.tp", m.ffn_hidden, "model.ffn_hidden");
    expect(m.first_dense_layers <= m.num_layers, "model.first_dense_layers",
           "{} is more than model.num_layers = {}; choose fewer", m.first_dense_layers,
           m.num_layers);
    // Each rank but the last has ceil(vocab / tp) ids; the last one must get at least one.
    const int64_t run = ceil_div(m.vocab_size, tp);
    expect(m.vocab_size == 0 || (tp - 1) * run < m.vocab_size, "model.vocab_size",
           "{} ids in parts of {} leave none for the last of parallel.tp = {} ranks; choose a "
           "multiple of parallel.tp",
           m.vocab_size, run, tp);
  }

  void rope() {
    const ModelConfig& m = config_.model;
    const RopeScaling& scaling = m.rope_scaling;
    if (m.position != Position::rope) {
      expect(m.rotary_dim == 0, "model.rotary_dim", "only model.position: rope has it; remove it");
      expect(scaling.type == RopeScalingType::none, "model.rope_scaling.type",
             "only model.position: rope has wavelengths; set it to none");
      return;
    }
    expect(m.head_dim % 2 == 0, "model.head_dim",
           "rope rotates halves of a head: {} must be even; or set model.position: learned",
           m.head_dim);
    expect(m.rotary_dim % 2 == 0 && m.rotary_dim <= m.head_dim, "model.rotary_dim",
           "{} must be even and at most model.head_dim = {}: channels turn in pairs", m.rotary_dim,
           m.head_dim);
    if (scaling.type == RopeScalingType::none) {
      expect(scaling.factor == 1.0, "model.rope_scaling.factor",
             "has no effect without model.rope_scaling.type; set it");
      return;
    }
    if (scaling.type == RopeScalingType::linear) return;
    expect(scaling.original_seq_len > 0, "model.rope_scaling.original_seq_len",
           "is missing: the context length before the scaling");
    expect(scaling.low_freq_factor < scaling.high_freq_factor, "model.rope_scaling.low_freq_factor",
           "{} must be less than high_freq_factor = {}", scaling.low_freq_factor,
           scaling.high_freq_factor);
    expect(scaling.beta_slow > 0.0 && scaling.beta_slow < scaling.beta_fast,
           "model.rope_scaling.beta_slow", "{} must be more than 0 and less than beta_fast = {}",
           scaling.beta_slow, scaling.beta_fast);
  }

  void experts() {
    const ModelConfig& m = config_.model;
    expect(m.num_experts > 0, "model.num_experts", "is missing: a {} model has routed experts",
           m.structure == Structure::bigmac ? "bigmac" : "mixture-of-experts");
    expect(m.expert_ffn_hidden > 0, "model.expert_ffn_hidden",
           "is missing: the inner width of an expert");
    expect(m.router.top_k <= m.num_experts, "model.router.top_k",
           "{} is more than model.num_experts = {}; choose fewer", m.router.top_k, m.num_experts);
    expert_groups();
    expect(m.num_experts % config_.parallel.ep == 0, "parallel.ep",
           "{} does not divide model.num_experts = {}; choose a divisor", config_.parallel.ep,
           m.num_experts);
    if (m.structure == Structure::bigmac) {
      expect(m.latent > 0 && m.latent <= m.hidden, "model.latent",
             "must be from 1 to model.hidden = {}, not {}: the width of the rows that travel",
             m.hidden, m.latent);
    } else {
      expect(m.latent == 0, "model.latent", "only bigmac models have it; remove it");
    }
    expect(!m.shared_expert_gate || m.num_shared_experts > 0, "model.shared_expert_gate",
           "has no effect without shared experts; set model.num_shared_experts");
    if (m.num_shared_experts > 0) {
      expect(m.shared_expert_ffn_hidden > 0, "model.shared_expert_ffn_hidden",
             "is missing: the inner width of a shared expert");
      divides(config_.parallel.tp, "parallel.tp", m.num_shared_experts * m.shared_expert_ffn_hidden,
              "model.shared_expert_ffn_hidden");
    }
  }

  void expert_groups() {
    const RouterConfig& r = config_.model.router;
    const int experts = config_.model.num_experts;
    divides(r.num_groups, "model.router.num_groups", experts, "model.num_experts");
    expect(r.groups_per_token <= r.num_groups, "model.router.groups_per_token",
           "{} is more than model.router.num_groups = {}; choose fewer", r.groups_per_token,
           r.num_groups);
    const int size = experts / r.num_groups;
    expect(
        r.num_groups == 1 || size >= group_score_terms(r.score), "model.router.num_groups",
        "the score of a group adds up {} experts of it, and a group of {} / {} has fewer; choose "
        "fewer groups",
        group_score_terms(r.score), experts, r.num_groups);
    expect(r.top_k <= size * r.groups_per_token || r.top_k > experts, "model.router.top_k",
           "{} is more than the {} experts of a token's model.router.groups_per_token = {} groups; "
           "choose fewer, or more groups",
           r.top_k, size * r.groups_per_token, r.groups_per_token);
  }

  // What the CUDA kernels do not take; the CPU takes it all.
  void cuda() {
    const ModelConfig& m = config_.model;
    const auto at_most = [&](int64_t number, int64_t most, const std::string& key,
                             const char* what) {
      expect(number <= most, key,
             "CUDA devices work with at most {} {}, not {}; choose fewer, or "
             "set run.device: cpu",
             most, what, number);
    };
    at_most(m.head_dim, cuda_limits::kHeadDim, "model.head_dim", "elements of a head");
    at_most(m.hidden, cuda_limits::kNormWidth, "model.hidden", "elements of a normalised row");
    if (m.structure == Structure::dense) return;
    at_most(m.num_experts, cuda_limits::kExperts, "model.num_experts", "experts of a layer");
    at_most(m.router.top_k, cuda_limits::kTopK, "model.router.top_k", "experts of a token");
    at_most(m.router.num_groups, cuda_limits::kExpertGroups, "model.router.num_groups",
            "groups of experts");
  }

  void batches() {
    const TrainSection& t = config_.train;
    // Steps, sequences and tokens are counted in 64 bits.
    const double tokens = static_cast<double>(t.max_steps) *
                          static_cast<double>(t.global_batch_size) *
                          static_cast<double>(config_.model.seq_len);
    expect(tokens < 9e18, "train.max_steps",
           "{} steps of {} sequences of {} tokens cannot be counted; choose fewer", t.max_steps,
           t.global_batch_size, config_.model.seq_len);
    if (world_size_ % config_.parallel.tp != 0) return;
    const int64_t dp = world_size_ / config_.parallel.tp;
    expect(t.global_batch_size % (t.micro_batch_size * dp) == 0, "train.global_batch_size",
           "{} is not divisible by micro_batch_size * dp = {} * {}; choose a multiple of {}",
           t.global_batch_size, t.micro_batch_size, dp, t.micro_batch_size * dp);
    expect(t.micro_batch_size * config_.model.seq_len % config_.parallel.tp == 0,
           "train.micro_batch_size",
           "the {} * {} tokens of a micro-batch are not divisible by parallel.tp = {}, which "
           "splits them between blocks; choose a multiple for it or for model.seq_len",
           t.micro_batch_size, config_.model.seq_len, config_.parallel.tp);
  }

  // Weights mix what is trained on, and names stand for what is evaluated on.
  void sources() {
    for (const DataSource& source : config_.data.train) {
      expect(source.name.empty(), "data.train", "{}: a name has no effect in training; take it out",
             source.path);
    }
    for (const DataSource& source : config_.data.validation) {
      expect(source.weight == 1.0, "data.validation",
             "{}: a weight has no effect in an evaluation; take it out", source.path);
    }
  }

  // Each update rule has keys of its own, which have no effect on the others.
  void optimizer() {
    const OptimizerConfig& o = config_.optimizer;
    expect(o.type == OptimizerType::sgd || o.eps > 0.0, "optimizer.eps",
           "0 divides by zero where a gradient is zero; choose more, such as 1e-8");
    expect(o.type != OptimizerType::adamw || o.momentum == 0.0, "optimizer.momentum",
           "has no effect without optimizer.type: sgd; take it out");
    if (o.type == OptimizerType::muon) {
      expect(o.momentum == 0.0, "optimizer.momentum",
             "is the momentum of sgd; with muon set optimizer.muon.momentum");
      return;
    }
    const auto only_with_muon = [&](bool is_default, const std::string& key) {
      expect(is_default, key, "has no effect without optimizer.type: muon; take it out");
    };
    const MuonConfig standard;
    only_with_muon(o.muon.momentum == standard.momentum, "optimizer.muon.momentum");
    only_with_muon(o.muon.nesterov == standard.nesterov, "optimizer.muon.nesterov");
    only_with_muon(o.muon.ns_steps == standard.ns_steps, "optimizer.muon.ns_steps");
  }

  // A run of 0 steps has no length yet: train asks for it.
  void schedule() {
    const ScheduleConfig& s = config_.optimizer.schedule;
    const int64_t steps = config_.train.max_steps;
    const double lr = config_.optimizer.lr;
    expect(s.type == ScheduleType::constant || s.min_lr <= lr, "optimizer.schedule.min_lr",
           "{} is more than optimizer.lr = {}, from which the rate falls; choose less", s.min_lr,
           lr);
    const bool falls = s.type == ScheduleType::wsd;
    expect(!falls || s.decay_steps > 0, "optimizer.schedule.decay_steps",
           "is missing: the length of wsd's fall; or set optimizer.schedule.type: constant");
    if (steps == 0) return;
    expect(s.warmup_steps <= steps, "optimizer.schedule.warmup_steps",
           "a warm-up of {} steps is longer than the run, train.max_steps = {}; choose fewer",
           s.warmup_steps, steps);
    if (!falls || s.warmup_steps > steps) return;
    expect(s.decay_steps <= steps - s.warmup_steps, "optimizer.schedule.decay_steps",
           "a fall of {} steps does not fit in the run, train.max_steps = {}, after the {} of the "
           "warm-up; choose at most {}",
           s.decay_steps, steps, s.warmup_steps, steps - s.warmup_steps);
  }

  void hash_training() {
    const HashTrainingConfig& t = config_.hash.training;
    expect(t.positive_share > 0.0, "hash.training.positive_share",
           "with 0 no key is similar; choose more");
    expect(t.positive_share < 1.0, "hash.training.positive_share",
           "with 1 every key is similar and there is nothing to tell apart; choose less");
    expect(t.sigma > 0.0, "hash.training.sigma",
           "with 0 every code is the same and nothing is learned; choose more");
    expect(t.last_label <= t.top_label, "hash.training.last_label",
           "{} is more than hash.training.top_label = {}, from which labels fall; choose less",
           t.last_label, t.top_label);
    expect(t.negative_label < t.last_label, "hash.training.negative_label",
           "{} is not less than hash.training.last_label = {}, the least label of a similar key; "
           "choose less",
           t.negative_label, t.last_label);
  }

  // Distances of signs are summed over the query heads of a group.
  void hash_signs() {
    const ModelConfig& m = config_.model;
    const bool has_signs = config_.hash.training.objective == HashObjectiveKind::paper ||
                           config_.decode.keys.method == DecodeMethod::random_hash;
    if (!has_signs || m.num_kv_heads <= 0 || m.num_heads < m.num_kv_heads) return;
    const int64_t group = m.num_heads / m.num_kv_heads;
    const int64_t most = most_columns(QueryCodes::signs, group, 1) / 32 * 32;
    expect(config_.hash.bits <= most, "hash.bits",
           "distances of {} bits, summed over the {} query heads of a group, do not fit 16 bits; "
           "choose at most {}",
           config_.hash.bits, group, most);
  }

  void hash() {
    hash_training();
    const HashSection& h = config_.hash;
    expect(h.bits % 32 == 0, "hash.bits", "{} is not a multiple of 32, the bits of a word", h.bits);
    hash_signs();
    for (const auto& [key, length] : {std::pair("hash.training.seq_len", h.training.seq_len),
                                      std::pair("hash.evaluation.seq_len", h.evaluation.seq_len)}) {
      expect(length <= config_.model.seq_len, key,
             "{} is more than model.seq_len = {}; choose fewer", length, config_.model.seq_len);
    }
    for (const int64_t bits : h.evaluation.bits) {
      expect(bits % 32 == 0, "hash.evaluation.bits", "{} is not a multiple of 32", bits);
      expect(bits <= kMostHashBits, "hash.evaluation.bits", "{} is more than {}; choose fewer",
             bits, kMostHashBits);
    }
    expect(!h.evaluation.budgets.empty() || h.evaluation.methods.empty(), "hash.evaluation.budgets",
           "names no budget to measure the methods with; give one, or leave it out");
    for (const double budget : h.evaluation.budgets) {
      expect(budget > 0.0, "hash.evaluation.budgets", "{} keys are none; choose more than 0",
             budget);
    }
  }

  void decode() {
    const DecodeSection& d = config_.decode;
    expect(d.keys.budget > 0.0, "decode.budget", "{} keys are none; choose more than 0",
           d.keys.budget);
    const auto always = static_cast<double>(d.keys.sink + d.keys.recent);
    expect(d.keys.budget < 1.0 || always <= d.keys.budget, "decode.budget",
           "{} keys do not hold decode.sink + decode.recent = {}, which are always chosen; choose "
           "more keys, or fewer of those",
           d.keys.budget, always);
    constexpr int64_t kMostTables = 4096;
    expect(d.keys.magicpig_tables <= kMostTables, "decode.magicpig_tables",
           "{} is more than {}; choose fewer", d.keys.magicpig_tables, kMostTables);
    expect(d.keys.snapkv_kernel % 2 == 1, "decode.snapkv_kernel",
           "{} positions have none in their middle; choose an odd number", d.keys.snapkv_kernel);
    expect(config_.model.seq_len <= 0 || d.eval_tokens < config_.model.seq_len,
           "decode.eval_tokens",
           "{} leaves none of the model.seq_len = {} tokens as context; choose fewer",
           d.eval_tokens, config_.model.seq_len);
    using enum DecodeMethod;
    const bool reads_codes = d.keys.method == hata || d.keys.method == random_hash;
    expect(d.offload == Offload::none || d.keys.method == dense || reads_codes, "decode.offload",
           "{} reads the keys of every token on the device; choose dense, hata or random_hash as "
           "decode.attention",
           to_string(d.keys.method));
    const int64_t evaluated = config_.hash.evaluation.seq_len;
    expect(evaluated == 0 || d.eval_tokens < evaluated, "decode.eval_tokens",
           "{} leaves none of the hash.evaluation.seq_len = {} tokens as context; choose fewer",
           d.eval_tokens, evaluated);
  }

  const LoadedConfig& loaded_;
  const RunConfig& config_;
  int world_size_;
  std::vector<std::string> problems_;
};

}  // namespace

void validate_config(const LoadedConfig& loaded, int world_size,
                     std::span<const ConfigProblem> others) {
  std::vector<std::string> problems = Checks(loaded, world_size).run(others);
  if (!problems.empty()) throw ConfigError(std::move(problems));
}

}  // namespace switchyard
