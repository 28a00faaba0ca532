// write_logits RUN_OR_CHECKPOINT TOKENS.h5 LOGITS.h5 writes the program's own logits, which `eval`
// and `generate` keep for themselves; scripts/smollm2_check.py compares them with others.
//
//   TOKENS.h5  tokens [sequences, tokens] i32
//   LOGITS.h5  logits [sequences, tokens, vocab_size] f32, in the memory one sequence at a time
#include <cstdio>
#include <exception>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/config/config_reader.h"
#include "trainer/config/model_options.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

Tensor logits_of(Stream& stream, const DistributedContext& dist, Transformer& model,
                 std::span<const int32_t> tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  MicroBatch batch{.num_sequences = 1,
                   .seq_len = length,
                   .tokens = Tensor({1, length}, DType::i32),
                   .targets = Tensor({1, length}, DType::i32),
                   .document_start = {}};
  std::copy(tokens.begin(), tokens.end(), batch.tokens.data<int32_t>());
  Workspace saved, scratch;
  StepContext ctx{.stream = stream,
                  .saved = saved,
                  .scratch = scratch,
                  .dist = dist,
                  .batch = batch,
                  .scales = {},
                  .global_tokens = length,
                  .statistics = nullptr};
  Tensor logits({length, model.config().vocab_size}, DType::f32);
  model.forward_logits(ctx, logits);
  return logits;
}

void run(const fs::path& source, const fs::path& tokens_path, const fs::path& logits_path) {
  const fs::path folder = find_checkpoint(source);
  const CheckpointReader reader(folder);
  const RunConfig config =
      load_stored_config(reader.manifest().state.config, folder.string(), {}).config;
  Stream stream;
  const DistributedContext dist;
  Transformer model(stream, config.model, dist, transformer_options(config, false));
  const std::vector<TensorView> biases = model.balancing_biases();
  StagedTensors staged({}, biases);
  load_weights(stream, folder, model.parameters(), staged.tensors(), dist);
  staged.upload(stream);

  const hdf5::File from = hdf5::File::open(tokens_path);
  const hdf5::Dataset dataset = from.dataset("tokens");
  require(dataset.shape().size() == 2, "tokens must be [sequences, tokens]");
  const int64_t sequences = dataset.shape()[0], length = dataset.shape()[1];
  const std::vector<int32_t> tokens = dataset.read_all<int32_t>();
  hdf5::File to = hdf5::File::create(logits_path);
  hdf5::Dataset written =
      to.create_dataset("logits", hdf5::Element::f32, {sequences, length, config.model.vocab_size});
  for (int64_t s = 0; s < sequences; ++s) {
    const Tensor logits = logits_of(
        stream, dist, model,
        std::span(tokens).subspan(static_cast<size_t>(s * length), static_cast<size_t>(length)));
    written.write(std::span(logits.data<float>(), static_cast<size_t>(logits.num_elements())),
                  {{s, 0, 0}, {1, length, config.model.vocab_size}});
  }
  to.close();
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: write_logits RUN_OR_CHECKPOINT TOKENS.h5 LOGITS.h5\n");
    return 2;
  }
  try {
    switchyard::run(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "write_logits: %s\n", error.what());
    return 1;
  }
  return 0;
}
