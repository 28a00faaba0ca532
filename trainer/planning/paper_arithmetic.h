#pragma once

#include <string>

#include "layers/model_config.h"

namespace switchyard {

// The sizes of a fine-grained GPT and of its BigMac twin by the formulas of BigMac's Table 3, which
// differ a little from an exact count: routers are counted once and not per layer, experts' biases
// are estimated, attention is counted without the causal mask.
struct PaperFigures {
  double parameters = 0.0;
  double flops = 0.0;           // of one iteration
  double exchange_bytes = 0.0;  // of one iteration, all ranks, bf16
};

struct PaperSetting {
  double hidden, layers, experts, top_k;
  double ratio;  // r: inner width of a fine-grained expert, and of BigMac's sent rows, over hidden
  double vocab, seq_len, batch, ep;
};

PaperFigures paper_fine_grained(const PaperSetting& setting);
PaperFigures paper_bigmac(const PaperSetting& setting);

// The setting of the paper's Table 4 for a model's sizes: a batch of 0.5 M tokens over 32 ranks,
// and a vocabulary padded to a multiple of 128, as Megatron pads it.
PaperSetting paper_setting(const ModelConfig& model);

// The figures of both twins for a GPT-style fine-grained or BigMac model; empty for other models.
std::string describe_paper_arithmetic(const ModelConfig& model);

}  // namespace switchyard
