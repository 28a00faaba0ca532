// write_case CONFIG FOLDER [key=value ...] writes the results of a configuration's model on some
// tokens; reference_model_test.py compares them with the reference.
//
// FOLDER/step_00000000 is a checkpoint of the model on one rank; FOLDER/case.h5 holds
//   tokens, targets  [sequences, tokens] i32
//   document_start   [sequences, tokens] i32; with data.mask: document only
//   logits           [sequences, tokens, vocab_size] f32
//   loss             [1] f64
//   aux_loss, z_loss, dropped (the sum over layers), and expert_counts per MoE layer, f64
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "tests/support/model_fixture.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/config/config_reader.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

constexpr int64_t kSequences = 3;

// Chooses values with which a mistake shows: norms with weights other than 1, biases other than 0,
// and routed experts that tie for all tokens or for a few. The router weights of experts 1, 5, 9
// ... are zero, so their logits are 0.
void make_less_symmetric(Transformer& model) {
  std::mt19937 engine(4711);
  std::normal_distribution<float> normal;
  for (Parameter& parameter : model.parameters().parameters()) {
    const std::string& name = parameter.spec.name;
    const std::span values(parameter.value.data<float>(),
                           static_cast<size_t>(parameter.value.num_elements()));
    if (parameter.value.shape().rank() == 1) {
      for (float& value : values) value += 0.3f * normal(engine);
    } else if (name.ends_with(".router.weight")) {
      const auto hidden = static_cast<size_t>(parameter.value.dim(1));
      for (size_t i = 0; i < values.size(); ++i) values[i] *= (i / hidden) % 4 == 1 ? 0.0f : 1.0f;
    }
  }
  for (const TensorView bias : model.balancing_biases()) {
    if (!bias) continue;
    for (int64_t e = 0; e < bias.num_elements(); ++e) {
      bias.data<float>()[e] = e % 4 == 1 ? 0.05f : 0.2f * normal(engine);
    }
  }
}

// Some targets do not count, and documents begin at any position, also at the first.
MicroBatch make_batch(const RunConfig& config) {
  MicroBatch batch = test::synthetic_batch(config.model, 0, kSequences,
                                           config.data.mask == AttentionMask::document);
  for (int64_t i = 0; i < batch.targets.num_elements(); i += 5) {
    batch.targets.data<int32_t>()[i] = -1;
  }
  if (!batch.document_start) return batch;
  for (int64_t s = 0; s < kSequences; ++s) {
    int32_t start = 0;
    for (int64_t t = 0; t < batch.seq_len; ++t) {
      if ((t + 3 * s) % 7 == 0) start = static_cast<int32_t>(t);
      batch.document_start.data<int32_t>()[s * batch.seq_len + t] = start;
    }
  }
  return batch;
}

struct Computed {
  std::vector<float> logits;
  StepFigures figures;
};

Computed compute(Stream& stream, const DistributedContext& dist, Transformer& model,
                 const MicroBatch& batch) {
  const ModelConfig& config = model.config();
  Workspace saved, scratch;
  StepStatistics statistics(model.num_moe_layers(), config.num_experts);
  statistics.reset(stream);
  GlobalBatchSize size{.targets = 0, .tokens = kSequences * config.seq_len};
  for (const int32_t target : test::to_vector<int32_t>(batch.targets)) size.targets += target >= 0;
  StepContext ctx{.stream = stream,
                  .saved = saved,
                  .scratch = scratch,
                  .dist = dist,
                  .batch = batch,
                  .scales = size.loss_scales(),
                  .global_tokens = size.tokens,
                  .statistics = &statistics};
  model.forward_loss(ctx);
  Computed computed{.logits = {}, .figures = statistics.read(stream)};

  ctx.statistics = nullptr;
  Tensor logits({ctx.tokens(), config.vocab_size}, DType::f32);
  model.forward_logits(ctx, logits);
  computed.logits = test::to_vector<float>(logits);
  return computed;
}

void write_checkpoint(const std::filesystem::path& folder, const RunConfig& config,
                      const DistributedContext& dist, Transformer& model) {
  CheckpointTensors tensors;
  const auto piece = [](const char* kind, const std::string& name, TensorView values) {
    return TensorPiece{kind,
                       name,
                       whole_tensor(values.shape()),
                       {values.data<float>(), static_cast<size_t>(values.num_elements())}};
  };
  for (Parameter& parameter : model.parameters().parameters()) {
    tensors.owned.push_back(piece(kWeights, parameter.spec.name, parameter.value));
  }
  const std::vector<TensorView> biases = model.balancing_biases();
  for (size_t layer = 0; layer < biases.size(); ++layer) {
    if (!biases[layer]) continue;
    tensors.replicated.push_back(
        piece(kBalancingBias, fmt::format("moe_layers.{}", layer), biases[layer]));
  }
  Checkpoints checkpoints(folder, 0, dist);
  TrainingState state;
  state.config = to_yaml(config);
  const SaveResult result = checkpoints.save(state, tensors);
  require(result.saved && result.problem.empty(), "{}", result.problem);
}

void write_case(const std::filesystem::path& path, const ModelConfig& config,
                const MicroBatch& batch, const Computed& computed) {
  hdf5::File file = hdf5::File::create(path);
  const auto write = [&]<class T>(const std::string& name, const std::vector<int64_t>& shape,
                                  const std::vector<T>& values) {
    file.create_dataset(name, hdf5::element_of<T>(), shape).write(std::span<const T>(values));
  };
  const std::vector<int64_t> shape = {batch.num_sequences, batch.seq_len};
  write("tokens", shape, test::to_vector<int32_t>(batch.tokens));
  write("targets", shape, test::to_vector<int32_t>(batch.targets));
  if (batch.document_start) {
    write("document_start", shape, test::to_vector<int32_t>(batch.document_start));
  }
  write("logits", {batch.num_sequences, batch.seq_len, config.vocab_size}, computed.logits);

  const StepFigures& figures = computed.figures;
  write("loss", {1}, std::vector<double>{figures.loss});
  write("dropped", {1}, std::vector<double>{figures.dropped});
  const auto layers = static_cast<int64_t>(figures.moe_layers.size());
  if (layers == 0) return file.close();
  std::vector<double> aux_loss, z_loss, expert_counts;
  for (const StepFigures::MoeLayer& layer : figures.moe_layers) {
    aux_loss.push_back(layer.aux_loss);
    z_loss.push_back(layer.z_loss);
    expert_counts.insert(expert_counts.end(), layer.expert_counts.begin(),
                         layer.expert_counts.end());
  }
  write("aux_loss", {layers}, aux_loss);
  write("z_loss", {layers}, z_loss);
  write("expert_counts", {layers, config.num_experts}, expert_counts);
  file.close();
}

void run(const std::string& config_path, const std::filesystem::path& folder,
         const std::vector<std::string>& overrides) {
  const LoadedConfig loaded = load_config(config_path, overrides);
  validate_config(loaded, /*world_size=*/1);
  const RunConfig& config = loaded.config;
  Stream stream;
  const DistributedContext dist;
  Transformer model(stream, config.model, dist, {.seed = config.run.seed});
  make_less_symmetric(model);
  const MicroBatch batch = make_batch(config);

  write_checkpoint(folder, config, dist, model);
  write_case(folder / "case.h5", config.model, batch, compute(stream, dist, model, batch));
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: write_case CONFIG FOLDER [key=value ...]\n");
    return 2;
  }
  try {
    switchyard::run(argv[1], argv[2], {argv + 3, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "write_case: %s\n", error.what());
    return 1;
  }
  return 0;
}
