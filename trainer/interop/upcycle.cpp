#include "trainer/interop/upcycle.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "trainer/checkpoint/tensor_piece.h"
#include "trainer/config/config_error.h"

namespace switchyard {
namespace {

constexpr int kDefaultCopies = 8, kDefaultActiveCopies = 2;

int64_t parts_of(const ModelConfig& dense, const ModelConfig& moe) {
  return moe.expert_ffn_hidden > 0 ? dense.ffn_hidden / moe.expert_ffn_hidden : 0;
}

class UpcycledSource final : public TensorSource {
 public:
  UpcycledSource(TensorSource& tensors, const ModelConfig& dense, const ModelConfig& moe,
                 uint64_t seed)
      : tensors_(tensors), dense_(dense), moe_(moe), seed_(seed), parts_(parts_of(dense, moe)) {}

  void read(const TensorKey& tensor, int64_t first, int64_t count,
            std::span<float> values) override {
    if (tensor.first == kBalancingBias) {
      std::ranges::fill(values, 0.0f);
      return;
    }
    const std::string& name = tensor.second;
    const size_t moe = name.find(".moe.");
    if (moe == std::string::npos) return tensors_.read(tensor, first, count, values);
    const std::string layer = name.substr(0, moe), part = name.substr(moe);
    if (part == ".moe.router.weight") return draw_router(name, first, count, values);
    if (name != held_for_) held_.clear();
    held_for_ = name;
    // Row by row: neighbours may lie in different experts.
    const auto width = static_cast<int64_t>(values.size()) / count;
    for (int64_t row = 0; row < count; ++row) {
      const auto out = values.subspan(static_cast<size_t>(row * width), static_cast<size_t>(width));
      if (part == ".moe.experts.down.weight") {
        read_down(layer, first + row, out);
      } else {
        read_inner(layer, part == ".moe.experts.gate_up.weight", first + row, out);
      }
    }
  }

 private:
  // Experts of one copy have the same row, so one draw per copy.
  void draw_router(const std::string& name, int64_t first, int64_t count,
                   std::span<float> values) const {
    const Shape whole{moe_.num_experts / parts_, moe_.hidden};
    Stream stream;
    for (int64_t row = 0; row < count; ++row) {
      Tensor drawn({1, moe_.hidden}, DType::f32);
      init_normal(stream, {seed_, stream_id(name)}, static_cast<float>(moe_.init_std), whole,
                  {(first + row) / parts_, 0}, drawn);
      std::copy_n(drawn.data<float>(), moe_.hidden,
                  values.begin() + static_cast<std::ptrdiff_t>(row * moe_.hidden));
    }
  }

  // A row of [gate; up], or of up alone, of some expert: a row of the dense gate or up.
  void read_inner(const std::string& layer, bool is_gated, int64_t row, std::span<float> values) {
    const int64_t inner = moe_.expert_ffn_hidden, rows = is_gated ? 2 * inner : inner;
    const int64_t part = row / rows % parts_, within = row % rows;
    const std::vector<float>& dense = hold(layer, is_gated && within < inner ? "gate" : "up");
    const int64_t dense_row = part * inner + within % inner;
    std::copy_n(dense.begin() + dense_row * dense_.hidden, dense_.hidden, values.begin());
  }

  // A row of down of some expert: a stretch of a row of the dense down.
  void read_down(const std::string& layer, int64_t row, std::span<float> values) {
    const std::vector<float>& dense = hold(layer, "down");
    const int64_t part = row / dense_.hidden % parts_, dense_row = row % dense_.hidden;
    const int64_t begin = dense_row * dense_.ffn_hidden + part * moe_.expert_ffn_hidden;
    std::copy_n(dense.begin() + begin, moe_.expert_ffn_hidden, values.begin());
  }

  // A whole matrix of a dense feed-forward, which is read for the first expert.
  const std::vector<float>& hold(const std::string& layer, const char* matrix) {
    std::vector<float>& values = held_[matrix];
    if (values.empty()) {
      values.resize(static_cast<size_t>(dense_.ffn_hidden * dense_.hidden));
      const std::string name = fmt::format("{}.feed_forward.{}.weight", layer, matrix);
      const bool is_down = matrix == std::string_view("down");
      tensors_.read({kWeights, name}, 0, is_down ? dense_.hidden : dense_.ffn_hidden, values);
    }
    return values;
  }

  TensorSource& tensors_;
  const ModelConfig dense_, moe_;
  const uint64_t seed_;
  const int64_t parts_;                             // into which a feed-forward is cut
  std::string held_for_;                            // the MoE's tensor that was read last
  std::map<std::string, std::vector<float>> held_;  // the dense matrices that it is made of
};

}  // namespace

void settle_upcycled_model(const ModelConfig& dense, LoadedConfig& loaded) {
  ModelConfig& moe = loaded.config.model;
  std::vector<std::string> problems;
  const auto is_set = [&](const char* key) {
    const auto origin = loaded.origins.find(key);
    return origin != loaded.origins.end() && origin->second == "command line";
  };
  const auto require_that = [&](bool ok, const std::string& problem) {
    if (!ok) problems.push_back("--upcycle: " + problem);
  };
  require_that(dense.structure == Structure::dense, "the imported model has experts already");
  if (!problems.empty()) throw ConfigError(std::move(problems));
  require_that(dense.bias != Biases::all,
               "experts have no biases, and the feed-forwards have some");
  if (!is_set("model.structure")) moe.structure = Structure::vanilla;
  const bool is_fine = moe.structure == Structure::fine_grained;
  require_that(is_fine || moe.structure == Structure::vanilla,
               "model.structure is vanilla or fine_grained");
  if (!is_set("model.expert_ffn_hidden") && !is_fine) moe.expert_ffn_hidden = dense.ffn_hidden;
  const int64_t inner = moe.expert_ffn_hidden;
  require_that(inner > 0 && dense.ffn_hidden % inner == 0 && (is_fine || inner == dense.ffn_hidden),
               fmt::format("model.expert_ffn_hidden must {} the feed-forward's width {}",
                           is_fine ? "divide" : "be", dense.ffn_hidden));
  if (!problems.empty()) throw ConfigError(std::move(problems));

  const auto parts = static_cast<int>(parts_of(dense, moe));
  RouterConfig& router = moe.router;
  if (!is_set("model.num_experts")) moe.num_experts = kDefaultCopies * parts;
  if (!is_set("model.router.top_k")) router.top_k = kDefaultActiveCopies * parts;
  if (!is_set("model.router.normalize_topk")) router.normalize_topk = true;
  if (!is_set("model.router.routed_scaling_factor")) router.routed_scaling_factor = parts;
  moe.ffn_hidden = 0;
  require_that(moe.num_experts % parts == 0 && router.top_k % parts == 0,
               fmt::format("model.num_experts and model.router.top_k must be multiples of {}, the "
                           "parts of a feed-forward",
                           parts));
  require_that(router.normalize_topk, "model.router.normalize_topk must be true");
  require_that(router.routed_scaling_factor == parts,
               fmt::format("model.router.routed_scaling_factor must be {}", parts));
  require_that(router.num_groups == 1, "model.router.num_groups must be 1");
  require_that(router.capacity_factor == 0.0, "model.router.capacity_factor must be 0");
  require_that(moe.num_shared_experts == 0 && moe.first_dense_layers == 0,
               "model.num_shared_experts and model.first_dense_layers must be 0");
  if (!problems.empty()) throw ConfigError(std::move(problems));
}

std::unique_ptr<TensorSource> make_upcycled_source(TensorSource& dense_tensors,
                                                   const ModelConfig& dense, const ModelConfig& moe,
                                                   uint64_t seed) {
  return std::make_unique<UpcycledSource>(dense_tensors, dense, moe, seed);
}

}  // namespace switchyard
