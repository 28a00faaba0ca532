#include "trainer/bench/inference_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/runtime/check.h"
#include "kernels/runtime/team_size.h"
#include "layers/decoding/cached_steps.h"
#include "layers/decoding/prompt_reader.h"
#include "parallel/rank_reduction.h"
#include "trainer/bench/random_tokens.h"
#include "trainer/training/session.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

// The moments of one repetition on the slowest rank: [i] is that of token i, the prompt's is 0.
struct Times {
  std::vector<double> until;     // from the begin
  std::vector<double> exchange;  // of the call itself
};

class Inference {
 public:
  Inference(MpiRuntime& mpi, const RunConfig& config, const InferenceBenchOptions& options)
      : config_(config),
        options_(options),
        calls_(*std::max_element(options.generated.begin(), options.generated.end())),
        session_(mpi, config),
        world_(mpi.world()),
        prompts_(session_.stream, session_.model, session_.dist),
        logits_({options.sequences, config.model.vocab_size}, DType::f32,
                session_.stream.device()) {}

  Times run() {
    KvCache cache =
        session_.model.make_cache(options_.sequences, options_.prompt_tokens + calls_ - 1);
    std::optional<CachedSteps> steps;
    Times times{.until = std::vector<double>(static_cast<size_t>(calls_)),
                .exchange = std::vector<double>(static_cast<size_t>(calls_))};
    session_.model.take_exchange_figures();
    world_.barrier(session_.stream);
    const auto begin = Clock::now();
    for (size_t i = 0; i < times.until.size(); ++i) {
      if (i == 0) {
        prompts_.read(next_tokens(options_.prompt_tokens), cache, logits_);
      } else {
        if (!steps) begin_steps(cache, steps);
        steps->run(next_tokens(1), logits_);
        session_.stream.synchronize();
      }
      times.until[i] = std::chrono::duration<double>(Clock::now() - begin).count();
      times.exchange[i] = session_.model.take_exchange_figures().seconds;
    }
    RankReduction slowest(world_);
    for (double& seconds : times.until) slowest.max(seconds);
    for (double& seconds : times.exchange) slowest.max(seconds);
    slowest.run(session_.stream);
    return times;
  }

  const ParallelLayout& layout() const { return session_.dist.layout(); }
  // See CachedSteps::obstacle; empty on the CPU.
  const std::string& not_recorded_because() const { return not_recorded_because_; }

 private:
  int64_t sequences() const { return options_.sequences; }

  // Random text for all sequences, that many tokens for each.
  std::vector<int32_t> next_tokens(int64_t of_sequence) {
    const int64_t count = sequences() * of_sequence;
    const int64_t begin = first_ + session_.dist.dp().rank() * count;
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) tokens.push_back(random_token(config_, begin + i));
    first_ += count * layout().dp();
    return tokens;
  }

  void begin_steps(KvCache& cache, std::optional<CachedSteps>& steps) {
    steps.emplace(session_.stream, session_.model, session_.dist, cache, sequences());
    if (session_.stream.device().runs_cuda()) not_recorded_because_ = steps->obstacle();
  }

  const RunConfig& config_;
  const InferenceBenchOptions& options_;
  int64_t calls_;
  Session session_;
  Communicator& world_;
  PromptReader prompts_;
  Tensor logits_;
  int64_t first_ = 0;  // of the random text, for the next call
  std::string not_recorded_because_;
};

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The median over the repetitions of figure(times).
template <class Figure>
double median_of(const std::vector<Times>& repetitions, const Figure& figure) {
  std::vector<double> values;
  for (const Times& times : repetitions) values.push_back(figure(times));
  return median(std::move(values));
}

void check(const RunConfig& config, const InferenceBenchOptions& options) {
  const int64_t longest = *std::max_element(options.generated.begin(), options.generated.end());
  require(
      options.prompt_tokens + longest <= config.model.seq_len,
      "a prompt of {} tokens and {} generated ones are longer than model.seq_len, {}: raise it, "
      "or choose fewer with --prompt and --generate",
      options.prompt_tokens, longest, config.model.seq_len);
  require(options.sequences % config.parallel.tp == 0,
          "{} sequences cannot be split over parallel.tp = {}: choose a multiple with --sequences",
          options.sequences, config.parallel.tp);
}

}  // namespace

double InferenceBenchReport::prefill_tokens_per_second() const {
  return static_cast<double>(sequences() * options.prompt_tokens) / prefill_seconds;
}

double InferenceBenchReport::decode_tokens_per_second() const {
  return token_seconds > 0.0 ? static_cast<double>(sequences()) / token_seconds : 0.0;
}

InferenceBenchReport bench_inference(MpiRuntime& mpi, const RunConfig& config,
                                     const InferenceBenchOptions& options) {
  run_collectively(mpi.world(), [&] { check(config, options); });
  Inference inference(mpi, config, options);
  InferenceBenchReport report{.options = options,
                              .layout = inference.layout(),
                              .threads = granted_team_size(),
                              .device = config.run.device};
  std::vector<Times> repetitions;
  inference.run();
  for (int64_t i = 0; i < options.repetitions; ++i) repetitions.push_back(inference.run());

  report.not_recorded_because = inference.not_recorded_because();
  const auto until = [](int64_t tokens) {
    return [=](const Times& times) { return times.until[static_cast<size_t>(tokens - 1)]; };
  };
  report.prefill_seconds = median_of(repetitions, until(1));
  report.prefill_exchange_seconds =
      median_of(repetitions, [](const Times& times) { return times.exchange[0]; });
  report.token_seconds = median_of(repetitions, [](const Times& times) {
    std::vector<double> tokens;
    for (size_t i = 1; i < times.until.size(); ++i) {
      tokens.push_back(times.until[i] - times.until[i - 1]);
    }
    return median(std::move(tokens));
  });
  report.token_exchange_seconds = median_of(repetitions, [](const Times& times) {
    return median({times.exchange.begin() + 1, times.exchange.end()});
  });
  for (const int64_t tokens : options.generated) {
    report.generation_seconds.push_back(median_of(repetitions, until(tokens)));
  }
  return report;
}

std::string describe(const InferenceBenchReport& r) {
  std::string text = fmt::format("{} ranks of {} threads, {}\n{} sequences, prompts of {} tokens\n",
                                 r.layout.world_size(), r.threads, to_string(r.layout),
                                 r.sequences(), r.options.prompt_tokens);
  const auto line = [&](const char* name, double seconds, double exchange, double rate) {
    text += fmt::format("{:<14}{:10.2f} ms, exchange {:5.1f} %, {:.0f} tokens/s\n", name,
                        1e3 * seconds, 100.0 * exchange / seconds, rate);
  };
  line("prefill", r.prefill_seconds, r.prefill_exchange_seconds, r.prefill_tokens_per_second());
  if (r.token_seconds > 0.0) {
    line("later token", r.token_seconds, r.token_exchange_seconds, r.decode_tokens_per_second());
  }
  if (!r.not_recorded_because.empty()) {
    text += fmt::format("steps are not recorded, because {}\n", r.not_recorded_because);
  }
  for (size_t i = 0; i < r.options.generated.size(); ++i) {
    text += fmt::format("prompt and {:>4} tokens {:10.2f} ms\n", r.options.generated[i],
                        1e3 * r.generation_seconds[i]);
  }
  return text;
}

std::string to_json(const InferenceBenchReport& r) {
  nlohmann::ordered_json json = {{"format", "switchyard.bench_inference"},
                                 {"device", r.device},
                                 {"ranks", r.layout.world_size()},
                                 {"tp", r.layout.tp()},
                                 {"ep", r.layout.ep()},
                                 {"threads", r.threads},
                                 {"repetitions", r.options.repetitions},
                                 {"sequences", r.sequences()},
                                 {"prompt_tokens", r.options.prompt_tokens},
                                 {"prefill_ms", 1e3 * r.prefill_seconds},
                                 {"prefill_exchange_ms", 1e3 * r.prefill_exchange_seconds},
                                 {"prefill_tokens_per_s", r.prefill_tokens_per_second()},
                                 {"token_ms", 1e3 * r.token_seconds},
                                 {"token_exchange_ms", 1e3 * r.token_exchange_seconds},
                                 {"decode_tokens_per_s", r.decode_tokens_per_second()},
                                 {"generation", nlohmann::ordered_json::array()}};
  if (!r.not_recorded_because.empty()) json["not_recorded_because"] = r.not_recorded_because;
  for (size_t i = 0; i < r.options.generated.size(); ++i) {
    json["generation"].push_back(
        {{"tokens", r.options.generated[i]}, {"ms", 1e3 * r.generation_seconds[i]}});
  }
  return json.dump(2) + "\n";
}

}  // namespace switchyard
