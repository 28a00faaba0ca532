#include "trainer/planning/paper_arithmetic.h"

#include <fmt/format.h>

#include <cmath>

namespace switchyard {

PaperFigures paper_fine_grained(const PaperSetting& s) {
  const double h = s.hidden, l = s.layers, r = s.ratio;
  return {.parameters = (4 * h * h + 8 * h + (2 * r * h * h + 2 * r * h) * s.experts) * l +
                        (s.vocab + s.experts + 2) * h,
          .flops = 12 * s.batch * s.seq_len * l * h * h *
                   (2 + s.seq_len / h + s.vocab / (2 * l * h) + r * s.top_k),
          .exchange_bytes = 8 * s.batch * s.seq_len * l * h * s.top_k * (s.ep - 1) / s.ep};
}

PaperFigures paper_bigmac(const PaperSetting& s) {
  const double h = s.hidden, l = s.layers, r = s.ratio;
  PaperFigures figures = paper_fine_grained(s);
  figures.parameters += 2 * r * l * h * h;
  figures.flops += 12 * r * s.batch * s.seq_len * l * h * h;
  figures.exchange_bytes *= r;
  return figures;
}

PaperSetting paper_setting(const ModelConfig& model) {
  constexpr double kBatchTokens = 524288.0, kRanks = 32.0;
  const auto hidden = static_cast<double>(model.hidden);
  const double narrow = static_cast<double>(
      model.structure == Structure::bigmac ? model.latent : model.expert_ffn_hidden);
  return {.hidden = hidden,
          .layers = static_cast<double>(model.num_layers),
          .experts = static_cast<double>(model.num_experts),
          .top_k = static_cast<double>(model.router.top_k),
          .ratio = narrow / hidden,
          .vocab = std::ceil(static_cast<double>(model.vocab_size) / 128.0) * 128.0,
          .seq_len = static_cast<double>(model.seq_len),
          .batch = kBatchTokens / static_cast<double>(model.seq_len),
          .ep = kRanks};
}

std::string describe_paper_arithmetic(const ModelConfig& model) {
  const bool twin =
      model.structure == Structure::fine_grained || model.structure == Structure::bigmac;
  if (!twin || model.position != Position::learned || is_gated(model.activation)) return "";
  const PaperSetting setting = paper_setting(model);
  const auto row = [](const char* name, const PaperFigures& figures) {
    return fmt::format("  {:<14}{:8.2f} B{:14.2f} TFLOP{:12.2f} GiB exchanged\n", name,
                       figures.parameters * 1e-9, figures.flops * 1e-12,
                       figures.exchange_bytes / (1024.0 * 1024.0 * 1024.0));
  };
  return fmt::format("\nBigMac's Table 3, for {:.0f} sequences over ep = {:.0f} (its Table 4)\n",
                     setting.batch, setting.ep) +
         row("fine-grained", paper_fine_grained(setting)) + row("BigMac", paper_bigmac(setting));
}

}  // namespace switchyard
