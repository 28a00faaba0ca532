#include <fmt/format.h>

#include <cmath>

#include "kernels/check.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/newest_model.h"
#include "trainer/data/open_data.h"
#include "trainer/training/evaluation.h"
#include "trainer/training/recall_evaluation.h"

namespace switchyard {

int eval_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  RunConfig config = loaded.config;
  const OpenData data = open_data(mpi, config, NeedsTraining::no);
  run_collectively(mpi.world(), [&] {
    require(data.validation != nullptr,
            "data.validation is missing: the token file to evaluate on");
  });
  Session session(mpi, config);
  const LoadedModel loaded_model = load_newest_model(mpi, config, session);
  TrainStep step(session.stream, session.model, session.dist);
  // All of the file, not the sample of it that training looks at.
  const EvaluationResult result =
      evaluate(step, data.validation->loader, data.validation->loader.num_batches(), mpi.world());
  if (mpi.rank() == 0) {
    fmt::print("{}\nheld-out loss {:.4f}, perplexity {:.2f}, over {} tokens of {}\n",
               loaded_model.description, result.loss, std::exp(result.loss), result.tokens,
               config.data.validation);
  }
  if (config.data.tokenizer.type != TokenizerType::recall) return kExitDone;
  const RecallScores scores =
      evaluate_recall(session.stream, session.model, session.dist, data.validation->loader,
                      data.validation->loader.num_batches());
  if (mpi.rank() == 0) fmt::print("{}", describe(scores));
  return kExitDone;
}

}  // namespace switchyard
