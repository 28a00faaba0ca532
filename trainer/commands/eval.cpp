#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/newest_model.h"
#include "trainer/data/open_data.h"
#include "trainer/hashing/load_decode_setup.h"
#include "trainer/inference/decode_evaluation.h"
#include "trainer/recall/recall_evaluation.h"
#include "trainer/training/evaluation.h"

namespace switchyard {
namespace {

// A loss that is not finite measures nothing. All ranks throw what rank 0 finds.
void require_finite_loss(MpiRuntime& mpi, double loss, const LoadedModel& model,
                         const std::string& text) {
  run_collectively(mpi.world(), [&] {
    require(mpi.rank() != 0 || std::isfinite(loss),
            "the held-out loss of {} on {} is {}: the model has diverged; name an earlier "
            "checkpoint with checkpoint.resume",
            model.description, text, loss);
  });
}

// Decodes the same tokens densely and with the method of decode.attention.
int eval_decoding(MpiRuntime& mpi, const RunConfig& config, Session& session,
                  const LoadedModel& model, ValidationLoader& validation) {
  const DecodeConfig& keys = config.decode.keys;
  const DecodeSetup setup = load_decode_setup(mpi, config, keys, config.hash.bits,
                                              config.model.seq_len, session, model.fingerprint);
  const DecodePlan plan =
      plan_decoding(config, validation, validation.spread_over_files(validation.num_batches()),
                    recall_answers(config), mpi.world());
  const DecodeSetup dense{};
  const std::vector<DecodeScore> scores =
      evaluate_decoding(session.stream, session.model, session.dist, validation, plan,
                        {selectors_of(dense), selectors_of(setup)});
  for (const DecodeScore& score : scores) {
    require_finite_loss(mpi, score.loss(), model, describe(config.data.validation));
  }
  if (mpi.rank() != 0) return kExitDone;
  fmt::print("{}\nlast {} of {} tokens of each held-out sequence, decoded one by one\n",
             model.description, config.model.seq_len - plan.prefill, config.model.seq_len);
  const std::string name(to_string(keys.method));
  for (size_t i = 0; i < scores.size(); ++i) {
    fmt::print("{}: held-out loss {:.4f}, perplexity {:.2f}, over {} tokens of {}\n",
               i == 0 ? "dense" : name, scores[i].loss(), scores[i].perplexity(), scores[i].targets,
               describe(config.data.validation));
    if (plan.answers) fmt::print("{}", describe(scores[i].answers, *plan.answers));
  }
  return kExitDone;
}

}  // namespace

int eval_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  RunConfig config = loaded.config;
  const OpenData data = open_data(mpi, config, NeedsTraining::no);
  run_collectively(mpi.world(), [&] {
    require(data.validation != nullptr,
            "data.validation is missing: it names the token file to evaluate on");
  });
  Session session(mpi, config);
  const LoadedModel loaded_model = load_newest_model(mpi, config, session, data.tokenizer->hash());
  if (config.decode.keys.method != DecodeMethod::dense) {
    return eval_decoding(mpi, config, session, loaded_model, data.validation->loader);
  }
  TrainStep step(session.stream, session.model, session.dist);
  // The whole file is read, not only the batches that training evaluates on.
  const EvaluationResult result =
      evaluate(step, data.validation->loader, data.validation->loader.num_batches(), mpi.world());
  run_collectively(mpi.world(), [&] {
    require(result.tokens > 0, "{} holds no token that is learned, so there is no loss to measure",
            describe(config.data.validation));
  });
  require_finite_loss(mpi, result.loss, loaded_model, describe(config.data.validation));
  if (mpi.rank() == 0) {
    fmt::print("{}\nheld-out loss {:.4f}, perplexity {:.2f}, over {} tokens of {}\n",
               loaded_model.description, result.loss, std::exp(result.loss), result.tokens,
               describe(config.data.validation));
    for (const auto& [name, loss] : result.file_losses) {
      fmt::print("{}: held-out loss {:.4f}, perplexity {:.2f}\n", name, loss, std::exp(loss));
    }
  }
  const AnswerKey* answers = recall_answers(config);
  if (!answers) return kExitDone;
  const AnswerScores scores =
      evaluate_recall(session.stream, session.model, session.dist, data.validation->loader,
                      data.validation->loader.num_batches());
  if (mpi.rank() == 0) fmt::print("{}", describe(scores, *answers));
  return kExitDone;
}

}  // namespace switchyard
