#include "trainer/bench/generate_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"
#include "kernels/runtime/stopwatch.h"
#include "kernels/runtime/team_size.h"
#include "layers/decoding/cached_steps.h"
#include "layers/decoding/prompt_reader.h"

namespace switchyard {
namespace {

constexpr int64_t kTurn = 4;  // tokens that a way decodes before the next one's turn

// What all ways share.
struct Bench {
  Stream& stream;
  Transformer& model;
  const DistributedContext& dist;
  std::span<const int32_t> tokens;
  int64_t prompt;  // tokens
  PromptReader prompts;
  Workspace scratch;
  Tensor logits;  // of the batch that is measured

  void begin(int64_t batch) {
    logits = Tensor({batch, model.config().vocab_size}, DType::f32, stream.device());
  }

  // Reads the prompt into an empty cache of one sequence; returns the seconds.
  double read_prompt(KvCache& cache) {
    Stopwatch stopwatch(stream.device());
    stopwatch.start(stream);
    prompts.read(tokens.first(static_cast<size_t>(prompt)), cache, logits);
    stopwatch.stop(stream);
    return stopwatch.take_seconds();
  }

  // Reads the token at `cache.length` in all sequences of the cache; returns the seconds.
  double read_token(CachedSteps& steps, const KvCache& cache, int64_t batch) {
    const std::vector<int32_t> next(static_cast<size_t>(batch),
                                    tokens[static_cast<size_t>(cache.length)]);
    Stopwatch stopwatch(stream.device());
    stopwatch.start(stream);
    steps.run(next, logits);
    stopwatch.stop(stream);
    return stopwatch.take_seconds();
  }
};

// The cache of `batch` sequences, each of which is the one of `cache`.
KvCache repeated(Bench& bench, const KvCache& cache, int64_t batch, const WayToDecode& way) {
  KvCache result = bench.model.make_cache(batch, cache.max_len);
  for (size_t layer = 0; layer < cache.layers.size(); ++layer) {
    const KvCacheLayer& one = cache.layers[layer];
    const int64_t heads = one.shape()[1];
    for (int64_t b = 0; b < batch; ++b) {
      for (const auto tensor : {&KvCacheLayer::k, &KvCacheLayer::v}) {
        const Shape flat{batch * heads, one.shape()[2], one.shape()[3]};
        const TensorView all = (result.layers[layer].*tensor).view().reshape(flat);
        copy(bench.stream, (one.*tensor).view(), all.rows(b * heads, heads).reshape(one.shape()));
      }
    }
  }
  result.length = cache.length;
  attach_selectors(bench.stream, bench.scratch, result, selectors_of(way.setup));
  bench.scratch.reset();
  return result;
}

// A way in the course of a measurement.
struct Runner {
  KvCache cache;
  GenerateBenchCase figures;
  std::vector<double> steps;
  std::unique_ptr<CachedSteps> reader = nullptr;  // of the cache, which must stay where it is

  void take_turn(Bench& bench, int64_t count) {
    if (!reader) {
      reader = std::make_unique<CachedSteps>(bench.stream, bench.model, bench.dist, cache,
                                             figures.batch);
      if (bench.stream.device().runs_cuda()) figures.not_recorded_because = reader->obstacle();
    }
    for (int64_t i = 0; i < count; ++i) {
      const double seconds = bench.read_token(*reader, cache, figures.batch);
      figures.decode_seconds += seconds;
      if (i > 0) steps.push_back(seconds);
    }
  }

  GenerateBenchCase finish(Bench& bench) {
    std::ranges::sort(steps);
    figures.step_seconds = steps[steps.size() / 2];
    for (KvCacheLayer& layer : cache.layers) {
      if (!layer.offloaded) continue;
      const PredictionFigures of_layer = layer.offloaded->prediction(bench.stream);
      figures.prediction.chosen += of_layer.chosen;
      figures.prediction.missed += of_layer.missed;
    }
    return figures;
  }
};

Runner prefill(Bench& bench, const WayToDecode& way) {
  Runner runner{.cache = bench.model.make_cache(1, std::ssize(bench.tokens), &way.setup),
                .figures = {.way = way.name, .prediction = {}, .not_recorded_because = {}},
                .steps = {}};
  attach_selectors(bench.stream, bench.scratch, runner.cache, selectors_of(way.setup));
  runner.figures.prefill_seconds = bench.read_prompt(runner.cache);
  return runner;
}

}  // namespace

GenerateBenchReport bench_generate(Stream& stream, Transformer& model,
                                   const DistributedContext& dist,
                                   std::span<const WayToDecode> ways,
                                   std::span<const int32_t> tokens,
                                   const GenerateBenchOptions& options,
                                   const std::function<void(const std::string&)>& on_progress) {
  require(options.new_tokens > 1 && options.new_tokens < std::ssize(tokens),
          "--new-tokens {} must be at least 2 and leave a prompt of the {} tokens",
          options.new_tokens, tokens.size());
  const std::set<int64_t> distinct(options.batches.begin(), options.batches.end());
  require(distinct.size() == options.batches.size(), "--samples names a number twice");
  Bench bench{.stream = stream,
              .model = model,
              .dist = dist,
              .tokens = tokens,
              .prompt = std::ssize(tokens) - options.new_tokens,
              .prompts = PromptReader(stream, model, dist),
              .scratch = Workspace(stream.device()),
              .logits = {}};
  GenerateBenchReport report{.options = options, .threads = granted_team_size(), .cases = {}};
  bench.begin(1);
  std::vector<Runner> prefilled;
  for (const WayToDecode& way : ways) {
    prefilled.push_back(prefill(bench, way));
    on_progress(
        fmt::format("prefill, {}: {:.2f} s", way.name, prefilled.back().figures.prefill_seconds));
  }
  for (const int64_t batch : options.batches) {
    bench.begin(batch);
    std::deque<Runner> runners;
    for (size_t i = 0; i < ways.size(); ++i) {
      Runner& one = prefilled[i];
      if (ways[i].setup.far && batch > 1) continue;
      Runner& runner =
          runners.emplace_back(Runner{.cache = {}, .figures = one.figures, .steps = {}});
      runner.figures.batch = batch;
      runner.cache =
          ways[i].setup.far ? std::move(one.cache) : repeated(bench, one.cache, batch, ways[i]);
    }
    for (int64_t done = 0; done < options.new_tokens; done += kTurn) {
      for (Runner& runner : runners) {
        runner.take_turn(bench, std::min(kTurn, options.new_tokens - done));
      }
      on_progress(fmt::format("turn {} of {}, batch {}", done / kTurn + 1,
                              ceil_div(options.new_tokens, kTurn), batch));
    }
    for (Runner& runner : runners) report.cases.push_back(runner.finish(bench));
  }
  return report;
}

std::string describe(const GenerateBenchReport& report) {
  const auto prompt = report.options.prompt_tokens, new_tokens = report.options.new_tokens;
  std::string text = fmt::format(
      "{} threads; {} tokens of prompt, {} new ones; medians of steps\n\n"
      "{:<24}{:>10}{:>12}{:>12}{:>12}{:>12}{:>11}\n",
      report.threads, prompt, new_tokens, "", "sequences", "prefill s", "decode s", "ms a step",
      "tokens/s", "predicted");
  for (const GenerateBenchCase& c : report.cases) {
    const std::string predicted = c.prediction.chosen > 0
                                      ? fmt::format("{:.1f} %", 100.0 * c.prediction.share())
                                      : std::string();
    text += fmt::format("{:<24}{:>10}{:>12.2f}{:>12.3f}{:>12.2f}{:>12.1f}{:>11}\n", c.way, c.batch,
                        c.prefill_seconds, c.decode_seconds, 1e3 * c.step_seconds,
                        c.tokens_per_second(), predicted);
  }
  for (const GenerateBenchCase& c : report.cases) {
    if (c.not_recorded_because.empty()) continue;
    text += fmt::format("{}, {} sequences: steps are not recorded, because {}\n", c.way, c.batch,
                        c.not_recorded_because);
  }
  return text;
}

std::string to_json(const GenerateBenchReport& report) {
  using Json = nlohmann::ordered_json;
  Json json = {{"format", "switchyard.bench_generate"},
               {"generate", Json::array()},
               {"threads", report.threads},
               {"prompt_tokens", report.options.prompt_tokens},
               {"new_tokens", report.options.new_tokens}};
  for (const GenerateBenchCase& c : report.cases) {
    Json of_case = {{"way", c.way},
                    {"batch", c.batch},
                    {"prefill_seconds", c.prefill_seconds},
                    {"decode_seconds", c.decode_seconds},
                    {"step_seconds", c.step_seconds},
                    {"tokens_per_second", c.tokens_per_second()}};
    if (c.prediction.chosen > 0) of_case["predicted"] = c.prediction.share();
    if (!c.not_recorded_because.empty()) {
      of_case["not_recorded_because"] = c.not_recorded_because;
    }
    json["generate"].push_back(std::move(of_case));
  }
  return json.dump(2) + "\n";
}

}  // namespace switchyard
