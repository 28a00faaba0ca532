#include "trainer/training/session.h"

#include <fmt/format.h>

#include <chrono>

#include "kernels/basic/activation.h"
#include "kernels/runtime/check.h"

namespace switchyard {

Device choose_device(MpiRuntime& mpi, const std::string& name) {
  Device device = parse_device(name);
  run_collectively(mpi.world(), [&] { check_device(device); });
  // A scheduler may show each rank another device, which is then the rank's first one.
  if (name == "cuda" && !have_devices_of_their_own(mpi, device)) {
    run_collectively(mpi.world(), [&] {
      const int available = num_devices(DeviceKind::cuda);
      require(
          mpi.local_size() <= available,
          "{} ranks run on this machine, which has {} CUDA device{}: start as many ranks as there "
          "are, or let them share one with run.device=cuda:0",
          mpi.local_size(), available, available == 1 ? "" : "s");
    });
    device.index = mpi.local_rank();
  }
  make_current(device);
  return device;
}

Device start_watchdog(MpiRuntime& mpi, const RunConfig& config, Device device) {
  if (mpi.world_size() > 1) {
    mpi.watchdog().start(std::chrono::seconds(config.run.collective_timeout), device);
  }
  return device;
}

TransformerOptions model_options(const RunConfig& config, const DistributedContext& dist,
                                 Device device) {
  TransformerOptions options = transformer_options(config, dist.transfers_behind_compute());
  if (dist.transfers_behind_compute() && device.is_host()) {
    options.bucket_elements = ParameterStore::kBucketElementsOverMpi;
  }
  return options;
}

namespace {

// What a rank's experts compute in one layer and micro-batch if all get as many rows.
ExpertProducts expert_products_of(const RunConfig& config) {
  const ModelConfig& m = config.model;
  const int64_t tokens = config.train.micro_batch_size * m.seq_len / config.parallel.tp;
  return {.experts = m.num_experts / config.parallel.ep,
          .rows = tokens * m.router.top_k,
          .width = m.exchange_width(),
          .ffn_hidden = m.expert_ffn_hidden,
          .activation = m.activation};
}

AttentionWork attention_of(const RunConfig& config) {
  const ModelConfig& m = config.model;
  return {.batch = config.train.micro_batch_size,
          .heads = m.num_heads / config.parallel.tp,
          .kv_heads = m.num_kv_heads / config.parallel.tp,
          .seq_len = m.seq_len,
          .head_dim = m.head_dim};
}

}  // namespace

void Session::choose_methods(MpiRuntime& mpi, const RunConfig& config) {
  Communicator& world = mpi.world();
  if (stream.device().kind == DeviceKind::cpu) {
    return bf16_products_.choose(stream, world, measure_bf16_methods(), &set_bf16_method);
  }
  if (config.model.structure != Structure::dense) {
    expert_products_.choose(stream, world,
                            measure_expert_product_methods(stream, expert_products_of(config)),
                            [](ExpertProductMethod method) { set_expert_product_method(method); });
  }
  if (config.data.mask == AttentionMask::causal) {
    attention_.choose(stream, world, measure_attention_methods(stream, attention_of(config)),
                      [](AttentionMethod method) { set_attention_method(method); });
  }
}

Methods Session::methods() const {
  return {.bf16_products = bf16_products_.method(),
          .expert_products = expert_products_.method(),
          .attention = attention_.method()};
}

std::vector<std::string> Session::describe_methods() const {
  std::vector<std::string> lines = {bf16_products_.describe("bf16_products"),
                                    expert_products_.describe("expert_products"),
                                    attention_.describe("attention")};
  std::erase(lines, "");
  return lines;
}

std::vector<std::string> Session::keep_methods(const Methods& of_checkpoint,
                                               const std::string& name) {
  std::vector<std::string> lines;
  const auto keep = [&](auto& choice, const auto& method, std::string_view op) {
    if (choice.keep(method)) return;
    lines.push_back(fmt::format(
        "the method of {} of {} is {}, which not every rank here has: results are rounded in "
        "another way from here on",
        op_in_words(op), name, to_string(*method)));
  };
  keep(bf16_products_, of_checkpoint.bf16_products, "bf16_products");
  keep(expert_products_, of_checkpoint.expert_products, "expert_products");
  keep(attention_, of_checkpoint.attention, "attention");
  return lines;
}

}  // namespace switchyard
