#include "trainer/hashing/evaluate_hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <variant>

#include "kernels/runtime/check.h"
#include "layers/decoding/decode_methods.h"

namespace switchyard {
namespace {

using nlohmann::json;

// Rows that fill up the last batch come last, and have no targets.
int64_t rows_with_targets(const MicroBatch& batch) {
  const int32_t* targets = batch.targets.data<int32_t>();
  int64_t last = batch.batch * batch.seq_len - 1;
  while (last >= 0 && targets[last] < 0) --last;
  return last < 0 ? 0 : last / batch.seq_len + 1;
}

class Evaluator {
 public:
  Evaluator(Session& session, const RunConfig& config, const std::vector<HashCandidate>& candidates)
      : session_(session), config_(config), candidates_(candidates) {
    const size_t budgets = config.hash.evaluation.budgets.size();
    result_.decoded.assign(candidates.size(), std::vector<DecodeScore>(budgets));
    result_.selected.resize(static_cast<size_t>(config.model.num_layers));
    const auto heads = static_cast<size_t>(config.model.num_kv_heads / session.dist.tp().size());
    for (int layer = config.hash.dense_layers; layer < config.model.num_layers; ++layer) {
      result_.selected[static_cast<size_t>(layer)].assign(
          candidates.size(),
          std::vector<std::vector<SelectionSums>>(budgets, std::vector<SelectionSums>(heads)));
    }
  }

  void add_batch(const DecodePlan& plan, const MicroBatch& batch) {
    result_.plan = plan;
    const int64_t rows = rows_with_targets(batch);
    result_.sequences += rows;
    ForcedDecoding decoding(session_.stream, session_.model, session_.dist, batch, plan.prefill);
    const SelectorFactory probe{.make = [&](int layer, const KvCacheLayer& cache) {
      return make_probe(layer, cache, rows);
    }};
    add_decoding(plan, decoding, probe, batch, result_.dense);
    for (size_t c = 0; c < candidates_.size(); ++c) {
      for (size_t b = 0; b < budgets().size(); ++b) {
        add_decoding(plan, decoding, selectors_of(candidates_[c].setup, budgets()[b]), batch,
                     result_.decoded[c][b]);
      }
    }
  }

  HashEvaluation finish() {
    std::vector<DecodeScore> scores = {result_.dense};
    for (const auto& of : result_.decoded) scores.insert(scores.end(), of.begin(), of.end());
    sum_over_ranks(session_.dist, scores);
    auto next = scores.begin();
    result_.dense = *next++;
    for (auto& of : result_.decoded) {
      for (DecodeScore& score : of) score = *next++;
    }
    sum_selected();
    return std::move(result_);
  }

 private:
  const std::vector<double>& budgets() const { return config_.hash.evaluation.budgets; }

  std::unique_ptr<KeySelector> make_probe(int layer, const KvCacheLayer& cache, int64_t rows) {
    if (layer < config_.hash.dense_layers) return nullptr;
    std::vector<std::unique_ptr<KeySelector>> all;
    for (const HashCandidate& candidate : candidates_) {
      all.push_back(make_key_selector(candidate.setup, layer, cache));
    }
    return std::make_unique<SelectionProbe>(std::move(all), budgets(), rows,
                                            result_.selected[static_cast<size_t>(layer)]);
  }

  // Heads of all tp ranks side by side, summed over the ranks that had other sequences.
  void sum_selected() {
    constexpr size_t kValues = 4;
    const auto all_heads = static_cast<size_t>(config_.model.num_kv_heads);
    const size_t local_heads = all_heads / static_cast<size_t>(session_.dist.tp().size());
    const size_t first = static_cast<size_t>(session_.dist.tp().rank()) * local_heads;
    std::vector<double> values;
    const auto for_each = [&](const auto& body) {
      for (SelectionProbe::Sums& layer : result_.selected) {
        for (auto& candidate : layer) {
          for (auto& heads : candidate) body(heads);
        }
      }
    };
    for_each([&](const std::vector<SelectionSums>& heads) {
      const size_t begin = values.size() + first * kValues;
      values.resize(values.size() + all_heads * kValues);
      for (size_t h = 0; h < heads.size(); ++h) {
        const SelectionSums& s = heads[h];
        const double of_head[kValues] = {s.queries, s.recall, s.attention_mass, s.output_error};
        std::copy_n(of_head, kValues, values.begin() + static_cast<int64_t>(begin + h * kValues));
      }
    });
    // Sequences as well.
    values.push_back(session_.dist.tp().rank() == 0 ? static_cast<double>(result_.sequences) : 0.0);
    Stream stream;
    session_.dist.world().all_reduce(stream, view_of(std::span(values)), ReduceOp::sum);
    result_.sequences = static_cast<int64_t>(values.back());
    const double* next = values.data();
    for_each([&](std::vector<SelectionSums>& heads) {
      heads.assign(all_heads, {});
      for (SelectionSums& s : heads) {
        s = {.queries = next[0],
             .recall = next[1],
             .attention_mass = next[2],
             .output_error = next[3]};
        next += kValues;
      }
    });
  }

  Session& session_;
  const RunConfig& config_;
  const std::vector<HashCandidate>& candidates_;
  HashEvaluation result_;
};

// Means over heads and layers are means over queries: every head has as many.
json mean_of(const std::vector<SelectionSums>& all) {
  SelectionSums sums;
  for (const SelectionSums& one : all) {
    sums.queries += one.queries;
    sums.recall += one.recall;
    sums.attention_mass += one.attention_mass;
    sums.output_error += one.output_error;
  }
  const double n = std::max(sums.queries, 1.0);
  return {{"recall", sums.recall / n},
          {"attention_mass", sums.attention_mass / n},
          {"output_error", sums.output_error / n}};
}

json layer_of(int layer, const std::vector<SelectionSums>& heads) {
  json result = mean_of(heads);
  result["layer"] = layer;
  result["heads"] = json::array();
  for (const SelectionSums& head : heads) result["heads"].push_back(mean_of({head}));
  return result;
}

json decoded_json(const DecodeScore& score) {
  json result = {{"loss", score.loss()}, {"perplexity", score.perplexity()}};
  for (size_t task = 0; task < score.recall.size(); ++task) {
    const RecallScore& recall = score.recall[task];
    if (recall.samples == 0) continue;
    result["tasks"][std::string(to_string(static_cast<RecallTask>(task)))] = {
        {"samples", recall.samples},
        {"exact", recall.exact_share()},
        {"answers", recall.right_share()}};
  }
  return result;
}

json candidate_json(const HashCandidate& candidate) {
  const DecodeConfig& keys = candidate.setup.config;
  const DecodeMethodRow& row = row_of(keys.method);
  json result = {{"method", row.name}};
  if (row.projections != HashProjections::none) result["bits"] = candidate.bits;
  for (const auto& [name, value] : row.settings(keys)) {
    std::visit([&, key = std::string(name)](auto setting) { result[key] = setting; }, value);
  }
  return result;
}

}  // namespace

HashEvaluation evaluate_hash(Session& session, const RunConfig& config,
                             ValidationLoader& validation,
                             const std::vector<HashCandidate>& candidates,
                             const std::function<void(const std::string&)>& log) {
  const int64_t per_batch = config.train.global_batch_size;
  const int64_t wanted = config.hash.evaluation.sequences;
  const DecodePlan plan =
      plan_decoding(config, validation,
                    wanted > 0 ? (wanted + per_batch - 1) / per_batch : validation.num_batches(),
                    session.dist.world());
  Evaluator evaluator(session, config, candidates);
  for (int64_t i = 0; i < plan.batches; ++i) {
    GlobalBatch global;
    run_collectively(session.dist.world(), [&] { global = validation.load(i); });
    for (const MicroBatch& batch : global.micro_batches) evaluator.add_batch(plan, batch);
    if (session.dist.rank() == 0) log(fmt::format("batch {} of {}", i + 1, plan.batches));
  }
  return evaluator.finish();
}

json to_json(const HashEvaluation& evaluation, const std::vector<HashCandidate>& candidates,
             const RunConfig& config, const std::string& checkpoint) {
  const int64_t seq_len = config.model.seq_len;
  json results = json::array();
  for (size_t c = 0; c < candidates.size(); ++c) {
    for (size_t b = 0; b < config.hash.evaluation.budgets.size(); ++b) {
      json one = candidate_json(candidates[c]);
      one["budget"] = config.hash.evaluation.budgets[b];
      one["budget_tokens"] = budget_tokens(config.hash.evaluation.budgets[b], seq_len);
      one.update(decoded_json(evaluation.decoded[c][b]));
      std::vector<SelectionSums> all;
      one["layers"] = json::array();
      for (size_t layer = 0; layer < evaluation.selected.size(); ++layer) {
        if (evaluation.selected[layer].empty()) continue;
        const std::vector<SelectionSums>& heads = evaluation.selected[layer][c][b];
        one["layers"].push_back(layer_of(static_cast<int>(layer), heads));
        all.insert(all.end(), heads.begin(), heads.end());
      }
      one.update(mean_of(all));
      results.push_back(std::move(one));
    }
  }
  return {{"format", "switchyard.hash_evaluation"},
          {"version", 1},
          {"checkpoint", checkpoint},
          {"dense_layers", config.hash.dense_layers},
          {"context", seq_len},
          {"prefill", evaluation.plan.prefill},
          {"sequences", evaluation.sequences},
          {"decoded_targets", evaluation.dense.targets},
          {"dense", decoded_json(evaluation.dense)},
          {"results", std::move(results)}};
}

}  // namespace switchyard
