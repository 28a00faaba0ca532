#include "trainer/hashing/evaluate_hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <variant>

#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"
#include "layers/decoding/decode_methods.h"

namespace switchyard {
namespace {

using nlohmann::json;

Choice choice_of(const HashCandidate& candidate) {
  return row_of(candidate.setup.config.method).choice;
}

// The rows before the padding of a last batch: padding rows come last, and have no targets.
int64_t rows_with_targets(const MicroBatch& batch) {
  const int32_t* targets = batch.targets.data<int32_t>();
  int64_t last = batch.num_sequences * batch.seq_len - 1;
  while (last >= 0 && targets[last] < 0) --last;
  return last < 0 ? 0 : last / batch.seq_len + 1;
}

class Evaluator {
 public:
  Evaluator(Session& session, const RunConfig& config, const DecodePlan& plan,
            const std::vector<HashCandidate>& candidates)
      : session_(session), config_(config), candidates_(candidates) {
    const size_t budgets = config.hash.evaluation.budgets.size();
    result_.plan = plan;
    result_.dense = plan.no_score();
    for (const HashCandidate& candidate : candidates) {
      prompt_queries_.push_back(selectors_of(candidate.setup).prompt_queries);
    }
    result_.decoded.assign(candidates.size(), std::vector<DecodeScore>(budgets, plan.no_score()));
    result_.selected.resize(static_cast<size_t>(config.model.num_layers));
    const auto heads = static_cast<size_t>(config.model.num_kv_heads / session.dist.tp().size());
    for (int layer = config.hash.dense_layers; layer < config.model.num_layers; ++layer) {
      result_.selected[static_cast<size_t>(layer)].assign(
          candidates.size(),
          std::vector<std::vector<SelectionSums>>(budgets, std::vector<SelectionSums>(heads)));
    }
  }

  void add_batch(const MicroBatch& batch) {
    const DecodePlan& plan = result_.plan;
    const int64_t rows = rows_with_targets(batch);
    result_.sequences += rows;
    ForcedDecoding decoding(session_.stream, session_.model, session_.dist, batch, plan.prefill,
                            prompt_queries_);
    const SelectorFactory probe{.make = [&](int layer, const KvCacheLayer& cache) {
      return make_probe(layer, cache, rows);
    }};
    add_decoding(plan, decoding, probe, batch, result_.dense);
    for (size_t c = 0; c < candidates_.size(); ++c) {
      std::vector<DecodeScore>& of_budgets = result_.decoded[c];
      const bool looks_at_budget = choice_of(candidates_[c]) != Choice::sampling;
      for (size_t b = 0; b < (looks_at_budget ? budgets().size() : 1); ++b) {
        add_decoding(plan, decoding, selectors_of(candidates_[c].setup, budgets()[b]), batch,
                     of_budgets[b]);
      }
      if (!looks_at_budget) std::fill(of_budgets.begin() + 1, of_budgets.end(), of_budgets[0]);
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
    std::vector<SelectionProbe::Candidate> all(candidates_.size());
    for (size_t c = 0; c < all.size(); ++c) {
      const bool evicts = choice_of(candidates_[c]) == Choice::evicting;
      for (size_t b = 0; b < (evicts ? budgets().size() : 1); ++b) {
        all[c].push_back(make_key_selector(candidates_[c].setup, layer, cache));
      }
    }
    return std::make_unique<SelectionProbe>(std::move(all), budgets(), rows,
                                            result_.selected[static_cast<size_t>(layer)]);
  }

  // Puts the heads of all tp ranks side by side, and sums each over the ranks, over all sequences.
  void sum_selected() {
    const auto all_heads = static_cast<size_t>(config_.model.num_kv_heads);
    const int tp = session_.dist.tp().size(), tp_rank = session_.dist.tp().rank();
    const size_t first = all_heads / static_cast<size_t>(tp) * static_cast<size_t>(tp_rank);
    RankReduction reduction(session_.dist.world());
    for (SelectionProbe::Sums& layer : result_.selected) {
      for (auto& candidate : layer) {
        for (std::vector<SelectionSums>& heads : candidate) {
          std::vector<SelectionSums> all(all_heads);
          std::ranges::copy(heads, all.begin() + static_cast<int64_t>(first));
          heads = std::move(all);
          for (SelectionSums& head : heads) {
            reduction.sum(head.queries);
            reduction.sum(head.keys);
            reduction.sum(head.recall);
            reduction.sum(head.attention_mass);
            reduction.sum(head.output_error);
          }
        }
      }
    }
    if (tp_rank != 0) result_.sequences = 0;
    reduction.sum(result_.sequences);
    Stream stream;
    reduction.run(stream);
  }

  Session& session_;
  const RunConfig& config_;
  const std::vector<HashCandidate>& candidates_;
  std::vector<int64_t> prompt_queries_;  // of the candidates
  HashEvaluation result_;
};

void add(SelectionSums& sums, const SelectionSums& other) {
  sums.queries += other.queries;
  sums.keys += other.keys;
  sums.recall += other.recall;
  sums.attention_mass += other.attention_mass;
  sums.output_error += other.output_error;
}

json means_json(const SelectionSums& sums) {
  const SelectionSums mean = mean_of(sums);
  return {{"keys", mean.keys},
          {"recall", mean.recall},
          {"attention_mass", mean.attention_mass},
          {"output_error", mean.output_error}};
}

json layer_json(size_t layer, const std::vector<SelectionSums>& heads) {
  SelectionSums all;
  json of_heads = json::array();
  for (const SelectionSums& head : heads) {
    add(all, head);
    of_heads.push_back(means_json(head));
  }
  json result = means_json(all);
  result["layer"] = layer;
  result["heads"] = std::move(of_heads);
  return result;
}

json decoded_json(const DecodePlan& plan, const DecodeScore& score) {
  json result = {{"loss", score.loss()}, {"perplexity", score.perplexity()}};
  for (size_t task = 0; task < score.answers.size(); ++task) {
    const AnswerScore& answers = score.answers[task];
    if (answers.samples == 0) continue;
    const std::string name(plan.answers->task_name(static_cast<int>(task)));
    result["tasks"][name] = to_json(answers);
  }
  return result;
}

}  // namespace

// Every head has as many queries, so means over queries are means over heads and layers.
SelectionSums HashEvaluation::selected_by(size_t candidate, size_t budget) const {
  SelectionSums sums;
  for (const SelectionProbe::Sums& layer : selected) {
    if (layer.empty()) continue;
    for (const SelectionSums& head : layer[candidate][budget]) add(sums, head);
  }
  return sums;
}

SelectionSums mean_of(const SelectionSums& sums) {
  const double n = std::max(sums.queries, 1.0);
  return {.queries = sums.queries,
          .keys = sums.keys / n,
          .recall = sums.recall / n,
          .attention_mass = sums.attention_mass / n,
          .output_error = sums.output_error / n};
}

HashEvaluation evaluate_hash(Session& session, const RunConfig& config,
                             ValidationLoader& validation, const AnswerKey* answers,
                             const std::vector<HashCandidate>& candidates,
                             const std::function<void(const std::string&)>& log) {
  const int64_t per_batch = config.train.global_batch_size;
  const int64_t wanted = config.hash.evaluation.sequences;
  const int64_t batches = wanted > 0 ? ceil_div(wanted, per_batch) : validation.num_batches();
  const DecodePlan plan = plan_decoding(config, validation, validation.spread_over_files(batches),
                                        answers, session.dist.world());
  Evaluator evaluator(session, config, plan, candidates);
  for (size_t i = 0; i < plan.batches.size(); ++i) {
    GlobalBatch global;
    run_collectively(session.dist.world(), [&] { global = validation.load(plan.batches[i]); });
    for (const MicroBatch& batch : global.micro_batches) evaluator.add_batch(batch);
    if (session.dist.rank() == 0) log(fmt::format("batch {} of {}", i + 1, plan.batches.size()));
  }
  return evaluator.finish();
}

json to_json(const HashCandidate& candidate) {
  const DecodeConfig& keys = candidate.setup.config;
  const DecodeMethodRow& row = row_of(keys.method);
  json result = {{"method", to_string(row.method)}};
  if (row.projections != HashProjections::none) result["bits"] = candidate.bits;
  for (const auto& [name, value] : row.settings(keys)) {
    std::visit([&, key = std::string(name)](auto setting) { result[key] = setting; }, value);
  }
  return result;
}

json to_json(const HashEvaluation& evaluation, const std::vector<HashCandidate>& candidates,
             const RunConfig& config, const std::string& checkpoint) {
  const int64_t seq_len = config.model.seq_len;
  json results = json::array();
  for (size_t c = 0; c < candidates.size(); ++c) {
    for (size_t b = 0; b < config.hash.evaluation.budgets.size(); ++b) {
      json one = to_json(candidates[c]);
      one["budget"] = config.hash.evaluation.budgets[b];
      one["budget_tokens"] = budget_tokens(config.hash.evaluation.budgets[b], seq_len);
      one.update(decoded_json(evaluation.plan, evaluation.decoded[c][b]));
      one["layers"] = json::array();
      for (size_t layer = 0; layer < evaluation.selected.size(); ++layer) {
        if (evaluation.selected[layer].empty()) continue;
        one["layers"].push_back(layer_json(layer, evaluation.selected[layer][c][b]));
      }
      one.update(means_json(evaluation.selected_by(c, b)));
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
          {"dense", decoded_json(evaluation.plan, evaluation.dense)},
          {"results", std::move(results)}};
}

}  // namespace switchyard
