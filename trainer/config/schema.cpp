#include "trainer/config/schema.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

namespace switchyard {
namespace {

using Problem = std::optional<std::string>;

// Rows and tokens are numbered by 32-bit integers; and products of two sizes fit 64 bits.
constexpr int64_t kLargestCount = std::numeric_limits<int32_t>::max();
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

template <class T>
bool parse_number(const std::string& text, T* value) {
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, *value);
  return error == std::errc() && rest == end;
}

// As YAML's double-quoted text, which folds line breaks that are not escaped.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

// A parser of one scalar: lists are a mistake that all of them name alike.
template <class Parse>
auto scalar(std::string type, Parse parse) {
  return [type = std::move(type), parse](RunConfig& config, const ConfigValue& value) -> Problem {
    if (value.is_list) return fmt::format("expected {}, not a list", type);
    return parse(config, value.items.front());
  };
}

// The same for what YAML itself tells from text: quotes make text of it.
template <class Parse>
auto plain_scalar(std::string type, Parse parse) {
  const auto parse_scalar = scalar(type, parse);
  return [type = std::move(type), parse_scalar](RunConfig& config,
                                                const ConfigValue& value) -> Problem {
    if (value.is_quoted) {
      return fmt::format("expected {}, not the text \"{}\"", type, value.items.front());
    }
    return parse_scalar(config, value);
  };
}

// An integer as people write them, 1e6 for a million included; or what is wrong with it.
Problem parse_integer(const std::string& text, int64_t lowest, int64_t highest, int64_t* value) {
  if (!parse_number(text, value)) {
    double real = 0.0;
    if (!parse_number(text, &real) || real != std::floor(real)) {
      return fmt::format("expected an integer, not '{}'", text);
    }
    // Beyond 2^53 a double skips integers.
    if (std::abs(real) > 9e15) {
      return fmt::format("{} is too large: at most {}, or 9e15 with an exponent", text, highest);
    }
    *value = static_cast<int64_t>(real);
  }
  if (*value < lowest) return fmt::format("must be at least {}, not {}", lowest, *value);
  if (*value > highest) return fmt::format("must be at most {}, not {}", highest, *value);
  return {};
}

Problem parse_real(const std::string& text, double lowest, double highest, double* value) {
  if (!parse_number(text, value) || !std::isfinite(*value)) {
    return fmt::format("expected a number, not '{}'", text);
  }
  if (*value < lowest || *value > highest) {
    return fmt::format("must be from {} to {}, not {}", lowest, highest, text);
  }
  return {};
}

std::string integer_type(int64_t lowest, int64_t highest) {
  return highest >= kLargestCount ? fmt::format("integer, at least {}", lowest)
                                  : fmt::format("integer, {} to {}", lowest, highest);
}

// `member` returns a reference to the integer within a RunConfig.
template <class Member>
ConfigField integer(std::string key, Member member, int64_t lowest, int64_t highest,
                    std::string help) {
  const auto parse = [=](RunConfig& config, const std::string& text) -> Problem {
    int64_t value = 0;
    if (Problem problem = parse_integer(text, lowest, highest, &value)) return problem;
    using Target = std::remove_reference_t<decltype(member(config))>;
    member(config) = static_cast<Target>(value);
    return {};
  };
  const auto print = [=](const RunConfig& config) {
    return fmt::format("{}", member(const_cast<RunConfig&>(config)));
  };
  return {std::move(key), integer_type(lowest, highest), std::move(help),
          plain_scalar("an integer", parse), print};
}

template <class Member>
ConfigField count(std::string key, Member member, int64_t lowest, std::string help) {
  return integer(std::move(key), member, lowest, kLargestCount, std::move(help));
}

template <class Member>
ConfigField real(std::string key, Member member, double lowest, double highest, std::string help) {
  const auto parse = [=](RunConfig& config, const std::string& text) -> Problem {
    double value = 0.0;
    if (Problem problem = parse_real(text, lowest, highest, &value)) return problem;
    member(config) = value;
    return {};
  };
  const auto print = [=](const RunConfig& config) {
    return fmt::format("{}", member(const_cast<RunConfig&>(config)));
  };
  return {std::move(key), fmt::format("number, {} to {}", lowest, highest), std::move(help),
          plain_scalar("a number", parse), print};
}

template <class Member>
ConfigField boolean(std::string key, Member member, std::string help) {
  const auto parse = [=](RunConfig& config, const std::string& text) -> Problem {
    if (text != "true" && text != "false") {
      return fmt::format("expected true or false, not '{}'", text);
    }
    member(config) = text == "true";
    return {};
  };
  const auto print = [=](const RunConfig& config) {
    return std::string(member(const_cast<RunConfig&>(config)) ? "true" : "false");
  };
  return {std::move(key), "true | false", std::move(help), plain_scalar("true or false", parse),
          print};
}

template <class Member>
ConfigField text(std::string key, Member member, std::string help) {
  const auto parse = [=](RunConfig& config, const std::string& value) -> Problem {
    member(config) = value;
    return {};
  };
  const auto print = [=](const RunConfig& config) {
    return quoted(member(const_cast<RunConfig&>(config)));
  };
  return {std::move(key), "text", std::move(help), scalar("text", parse), print};
}

template <class Member>
ConfigField text_list(std::string key, Member member, std::string help) {
  const auto parse = [=](RunConfig& config, const ConfigValue& value) -> Problem {
    member(config) = value.items;
    return {};
  };
  const auto print = [=](const RunConfig& config) {
    std::vector<std::string> items;
    for (const std::string& item : member(const_cast<RunConfig&>(config))) {
      items.push_back(quoted(item));
    }
    return fmt::format("[{}]", fmt::join(items, ", "));
  };
  return {std::move(key), "list of text", std::move(help), parse, print};
}

template <class E>
using Names = std::vector<std::pair<std::string, E>>;

template <class Member, class E>
ConfigField choice(std::string key, Member member, Names<E> names, std::string help) {
  std::string type;
  for (const auto& [name, value] : names) type += (type.empty() ? "" : " | ") + name;
  const auto parse = [=](RunConfig& config, const std::string& text) -> Problem {
    for (const auto& [name, value] : names) {
      if (name == text) {
        member(config) = value;
        return {};
      }
    }
    return fmt::format("expected one of {}, not '{}'", type, text);
  };
  const auto print = [=](const RunConfig& config) {
    for (const auto& [name, value] : names) {
      if (value == member(const_cast<RunConfig&>(config))) return name;
    }
    return std::string("?");
  };
  return {std::move(key), type, std::move(help), scalar("one of " + type, parse), print};
}

// A list without repetition of what `choice` takes.
template <class Member, class E>
ConfigField choice_list(std::string key, Member member, Names<E> names, std::string help) {
  std::string type;
  for (const auto& [name, value] : names) type += (type.empty() ? "" : " | ") + name;
  const auto parse = [=](RunConfig& config, const ConfigValue& value) -> Problem {
    auto& chosen = member(config);
    chosen.clear();
    for (const std::string& item : value.items) {
      const auto found = std::ranges::find(names, item, &std::pair<std::string, E>::first);
      if (found == names.end()) {
        return fmt::format("expected some of {}, not '{}'", type, item);
      }
      if (std::ranges::find(chosen, found->second) != chosen.end()) {
        return fmt::format("{} is given twice", item);
      }
      chosen.push_back(found->second);
    }
    return {};
  };
  const auto print = [=](const RunConfig& config) {
    std::vector<std::string> items;
    for (const E value : member(const_cast<RunConfig&>(config))) {
      items.push_back(std::ranges::find(names, value, &std::pair<std::string, E>::second)->first);
    }
    return fmt::format("[{}]", fmt::join(items, ", "));
  };
  return {std::move(key), "list of " + type, std::move(help), parse, print};
}

// What is wrong with the first item that `parse` does not take, if any; a lone scalar is a list,
// too.
template <class T, class Parse>
Problem parse_list(const ConfigValue& value, const Parse& parse, std::vector<T>* list) {
  std::vector<T> items;
  for (const std::string& item : value.items) {
    if (Problem problem = parse(item, &items.emplace_back())) return problem;
  }
  *list = std::move(items);
  return {};
}

template <class Member>
ConfigField count_list(std::string key, Member member, int64_t lowest, std::string help) {
  const auto parse = [=](RunConfig& config, const ConfigValue& value) -> Problem {
    return parse_list(
        value,
        [=](const std::string& item, int64_t* number) {
          return parse_integer(item, lowest, kLargestCount, number);
        },
        &member(config));
  };
  const auto print = [=](const RunConfig& config) {
    return fmt::format("[{}]", fmt::join(member(const_cast<RunConfig&>(config)), ", "));
  };
  return {std::move(key), fmt::format("list of integers, each at least {}", lowest),
          std::move(help), parse, print};
}

template <class Member>
ConfigField real_list(std::string key, Member member, double lowest, double highest,
                      std::string help) {
  const auto parse = [=](RunConfig& config, const ConfigValue& value) -> Problem {
    return parse_list(
        value,
        [=](const std::string& item, double* number) {
          return parse_real(item, lowest, highest, number);
        },
        &member(config));
  };
  const auto print = [=](const RunConfig& config) {
    return fmt::format("[{}]", fmt::join(member(const_cast<RunConfig&>(config)), ", "));
  };
  return {std::move(key), fmt::format("list of numbers, each {} to {}", lowest, highest),
          std::move(help), parse, print};
}

// The reference to a member of the configuration.
#define SWITCHYARD_MEMBER(path) \
  [](RunConfig & c) -> auto& { return c.path; }

void add_run(std::vector<ConfigField>& fields) {
  fields.push_back(text("run.dir", SWITCHYARD_MEMBER(run.dir),
                        "where everything of the run goes: checkpoints, metrics, event files"));
  fields.push_back(integer("run.seed", SWITCHYARD_MEMBER(run.seed), 0, kNoLimit,
                           "decides initial weights, the order of samples and what is sampled"));
  fields.push_back(
      text("run.device", SWITCHYARD_MEMBER(run.device),
           "cpu; with CUDA also cuda (each rank of a machine its own GPU) and cuda:N (all "
           "ranks share one)"));
  fields.push_back(choice("run.compute_dtype", SWITCHYARD_MEMBER(run.compute_dtype),
                          Names<DType>{{"f32", DType::f32}, {"bf16", DType::bf16}},
                          "dtype of weights and activations in the passes; main weights, router, "
                          "statistics and gradients of weights are f32"));
  fields.push_back(
      integer("run.collective_timeout", SWITCHYARD_MEMBER(run.collective_timeout), 1, kNoLimit,
              "seconds after which a rank that waits for the others ends with an error "
              "that names the step"));
}

// Sizes that must be given are 0 until they are: validate_config asks for them, and a configuration
// without them still reads back from its own YAML.
void add_model(std::vector<ConfigField>& fields) {
  fields.push_back(choice("model.structure", SWITCHYARD_MEMBER(model.structure),
                          Names<Structure>{{"dense", Structure::dense},
                                           {"vanilla", Structure::vanilla},
                                           {"fine_grained", Structure::fine_grained},
                                           {"bigmac", Structure::bigmac}},
                          "which feed-forward the blocks have"));
  fields.push_back(count("model.vocab_size", SWITCHYARD_MEMBER(model.vocab_size), 0,
                         "tokens of the vocabulary; 0: the tokenizer's"));
  fields.push_back(count("model.seq_len", SWITCHYARD_MEMBER(model.seq_len), 0, "context length"));
  fields.push_back(
      count("model.hidden", SWITCHYARD_MEMBER(model.hidden), 0, "width of the residual stream"));
  fields.push_back(
      integer("model.num_layers", SWITCHYARD_MEMBER(model.num_layers), 0, 100000, "blocks"));
  fields.push_back(
      integer("model.num_heads", SWITCHYARD_MEMBER(model.num_heads), 0, 100000, "query heads"));
  fields.push_back(integer("model.num_kv_heads", SWITCHYARD_MEMBER(model.num_kv_heads), 0, 100000,
                           "key/value heads (grouped-query attention); 0: num_heads"));
  fields.push_back(count("model.head_dim", SWITCHYARD_MEMBER(model.head_dim), 0,
                         "width of a head; 0: hidden / num_heads"));
  fields.push_back(choice("model.position", SWITCHYARD_MEMBER(model.position),
                          Names<Position>{{"rope", Position::rope}, {"learned", Position::learned}},
                          "how tokens know their position"));
  fields.push_back(real("model.rope_theta", SWITCHYARD_MEMBER(model.rope_theta), 1.0, 1e12,
                        "base of the rotation's wavelengths"));
  fields.push_back(
      choice("model.norm", SWITCHYARD_MEMBER(model.norm),
             Names<Norm>{{"rms_norm", Norm::rms_norm}, {"layer_norm", Norm::layer_norm}},
             "normalisation before attention, feed-forward and head"));
  fields.push_back(
      real("model.norm_eps", SWITCHYARD_MEMBER(model.norm_eps), 0.0, 1.0, "added to the variance"));
  fields.push_back(boolean("model.qk_norm", SWITCHYARD_MEMBER(model.qk_norm),
                           "RMSNorm of every head's query and key before the rotation"));
  fields.push_back(boolean("model.bias", SWITCHYARD_MEMBER(model.bias),
                           "biases in attention and dense feed-forward (GPT style)"));
  fields.push_back(choice("model.activation", SWITCHYARD_MEMBER(model.activation),
                          Names<Activation>{{"swiglu", Activation::swiglu},
                                            {"gelu", Activation::gelu},
                                            {"relu", Activation::relu},
                                            {"relu2", Activation::relu2},
                                            {"silu", Activation::silu}},
                          "of every feed-forward; swiglu is the gated one"));
  fields.push_back(boolean("model.tie_embeddings", SWITCHYARD_MEMBER(model.tie_embeddings),
                           "the head uses the embedding's weight"));
  fields.push_back(real("model.init_std", SWITCHYARD_MEMBER(model.init_std), 0.0, 10.0,
                        "standard deviation of initial weights"));
  fields.push_back(count("model.ffn_hidden", SWITCHYARD_MEMBER(model.ffn_hidden), 0,
                         "inner width of dense feed-forwards"));
  fields.push_back(integer("model.first_dense_layers", SWITCHYARD_MEMBER(model.first_dense_layers),
                           0, 100000, "leading blocks with a dense feed-forward"));
  fields.push_back(integer("model.num_experts", SWITCHYARD_MEMBER(model.num_experts), 0, 100000,
                           "routed experts per layer"));
  fields.push_back(count("model.expert_ffn_hidden", SWITCHYARD_MEMBER(model.expert_ffn_hidden), 0,
                         "inner width of a routed expert"));
  fields.push_back(count("model.latent", SWITCHYARD_MEMBER(model.latent), 0,
                         "bigmac: width of the rows that travel to the experts (r * hidden)"));
  fields.push_back(integer("model.num_shared_experts", SWITCHYARD_MEMBER(model.num_shared_experts),
                           0, 100000, "experts that every token visits"));
  fields.push_back(count("model.shared_expert_ffn_hidden",
                         SWITCHYARD_MEMBER(model.shared_expert_ffn_hidden), 0,
                         "inner width of a shared expert"));
}

void add_router(std::vector<ConfigField>& fields) {
  fields.push_back(choice(
      "model.router.score", SWITCHYARD_MEMBER(model.router.score),
      Names<RouterScore>{{"softmax", RouterScore::softmax}, {"sigmoid", RouterScore::sigmoid}},
      "logits to scores"));
  fields.push_back(integer("model.router.top_k", SWITCHYARD_MEMBER(model.router.top_k), 1, 1024,
                           "experts per token"));
  fields.push_back(boolean("model.router.normalize_topk",
                           SWITCHYARD_MEMBER(model.router.normalize_topk),
                           "divide the chosen scores by their sum"));
  fields.push_back(real("model.router.routed_scaling_factor",
                        SWITCHYARD_MEMBER(model.router.routed_scaling_factor), 0.0, 1e6,
                        "factor of the chosen weights"));
  fields.push_back(choice("model.router.balance_scope",
                          SWITCHYARD_MEMBER(model.router.balance_scope),
                          Names<BalanceScope>{{"sequence", BalanceScope::sequence},
                                              {"global_batch", BalanceScope::global_batch}},
                          "over what the balance loss counts; global_batch costs an extra forward "
                          "pass under gradient accumulation"));
  fields.push_back(real("model.router.aux_loss_coef", SWITCHYARD_MEMBER(model.router.aux_loss_coef),
                        0.0, 1e6, "factor of the balance loss; 0: off"));
  fields.push_back(real("model.router.z_loss_coef", SWITCHYARD_MEMBER(model.router.z_loss_coef),
                        0.0, 1e6, "factor of the router's z-loss; 0: off"));
  fields.push_back(real("model.router.bias_update_rate",
                        SWITCHYARD_MEMBER(model.router.bias_update_rate), 0.0, 1.0,
                        "loss-free balancing: how far an expert's bias moves per step; 0: off"));
  fields.push_back(real("model.router.capacity_factor",
                        SWITCHYARD_MEMBER(model.router.capacity_factor), 0.0, 1e6,
                        "most assignments per (sequence, expert), by the mean; 0: dropless"));
  fields.push_back(choice("model.router.drop_policy", SWITCHYARD_MEMBER(model.router.drop_policy),
                          Names<DropPolicy>{{"lowest_weight", DropPolicy::lowest_weight},
                                            {"latest_position", DropPolicy::latest_position}},
                          "which assignments are dropped over capacity"));
  fields.push_back(boolean("model.router.force_balanced",
                           SWITCHYARD_MEMBER(model.router.force_balanced),
                           "benchmarks only: tokens go to experts in turn"));
}

void add_parallel_and_data(std::vector<ConfigField>& fields) {
  fields.push_back(integer("parallel.tp", SWITCHYARD_MEMBER(parallel.tp), 1, 1 << 20,
                           "ranks that split attention and dense layers; dp = ranks / tp"));
  fields.push_back(integer("parallel.ep", SWITCHYARD_MEMBER(parallel.ep), 1, 1 << 20,
                           "ranks that split the experts; divides the number of ranks"));
  fields.push_back(boolean("parallel.deduplicate", SWITCHYARD_MEMBER(parallel.deduplicate),
                           "a token that goes to several experts of one rank travels once"));
  fields.push_back(
      integer("parallel.exchange_chunks", SWITCHYARD_MEMBER(parallel.exchange_chunks), 0, 64,
              "parts in which a micro-batch's tokens travel to their experts, so that "
              "one part's transfer hides behind another's work; 0: 4 over NCCL, else 1"));
  fields.push_back(boolean("parallel.recompute", SWITCHYARD_MEMBER(parallel.recompute),
                           "keep only block inputs and run each block again in the backward pass"));
  fields.push_back(text("data.train", SWITCHYARD_MEMBER(data.train), "token file to train on"));
  fields.push_back(text("data.validation", SWITCHYARD_MEMBER(data.validation),
                        "held-out token file; empty: no evaluation"));
  fields.push_back(choice("data.tokenizer.type", SWITCHYARD_MEMBER(data.tokenizer.type),
                          Names<TokenizerType>{{"byte", TokenizerType::byte},
                                               {"sentencepiece", TokenizerType::sentencepiece},
                                               {"recall", TokenizerType::recall}},
                          "how text becomes tokens; recall: made-up retrieval tasks, whose answers "
                          "alone are trained on and evaluated"));
  fields.push_back(text("data.tokenizer.model", SWITCHYARD_MEMBER(data.tokenizer.model),
                        "sentencepiece: the .model file; `tokenize` trains it if it is missing"));
  fields.push_back(count("data.tokenizer.vocab_size", SWITCHYARD_MEMBER(data.tokenizer.vocab_size),
                         0, "sentencepiece: pieces to train"));
  fields.push_back(choice("data.mask", SWITCHYARD_MEMBER(data.mask),
                          Names<AttentionMask>{{"causal", AttentionMask::causal},
                                               {"document", AttentionMask::document}},
                          "document: no token sees another document"));
  fields.push_back(text_list("data.text", SWITCHYARD_MEMBER(data.text),
                             "`tokenize`: text files, or folders that are searched for *.txt, "
                             "*.rst, *.md and their .gz; one document per file"));
  fields.push_back(real("data.validation_share", SWITCHYARD_MEMBER(data.validation_share), 0.0, 0.9,
                        "`tokenize`: share of the documents that is held out"));
}

void add_recall(std::vector<ConfigField>& fields) {
  fields.push_back(integer("data.recall.seed", SWITCHYARD_MEMBER(data.recall.seed), 0, kNoLimit,
                           "decides the samples"));
  fields.push_back(
      choice_list("data.recall.tasks", SWITCHYARD_MEMBER(data.recall.tasks),
                  Names<RecallTask>{{"single", RecallTask::single},
                                    {"multi_key", RecallTask::multi_key},
                                    {"multi_value", RecallTask::multi_value},
                                    {"multi_query", RecallTask::multi_query},
                                    {"variable_tracking", RecallTask::variable_tracking}},
                  "which tasks the samples have, in turn"));
  fields.push_back(count("data.recall.train_sequences",
                         SWITCHYARD_MEMBER(data.recall.train_sequences), 0,
                         "`tokenize`: sequences of model.seq_len tokens to train on"));
  fields.push_back(count("data.recall.validation_sequences",
                         SWITCHYARD_MEMBER(data.recall.validation_sequences), 0,
                         "`tokenize`: held-out sequences, each of them one sample"));
  fields.push_back(count("data.recall.shortest", SWITCHYARD_MEMBER(data.recall.shortest), 0,
                         "training samples are as long as a sequence, half of it, a quarter ..., "
                         "but not shorter than this; 0: as long as a sequence"));
  fields.push_back(real("data.recall.practice_share", SWITCHYARD_MEMBER(data.recall.practice_share),
                        0.0, 1.0,
                        "how many of the training samples are practice in looking things up, with "
                        "many answers each, instead of a task"));
  fields.push_back(real("data.recall.train_share", SWITCHYARD_MEMBER(data.recall.train_share), 0.0,
                        0.9,
                        "how much of a training sample questions, and the needles that they ask "
                        "for, take at most; held-out samples have one question"));
  fields.push_back(real("data.recall.distractor_share",
                        SWITCHYARD_MEMBER(data.recall.distractor_share), 0.0, 0.9,
                        "multi_key: how much of a sample is needles"));
  fields.push_back(integer("data.recall.values", SWITCHYARD_MEMBER(data.recall.values), 1, 8,
                           "multi_value: values of a key"));
  fields.push_back(integer("data.recall.queries", SWITCHYARD_MEMBER(data.recall.queries), 1, 64,
                           "multi_query: keys that a held-out sample asks for"));
  fields.push_back(integer("data.recall.hops", SWITCHYARD_MEMBER(data.recall.hops), 0, 8,
                           "variable_tracking: how often a chain's value is handed on"));
}

void add_optimizer(std::vector<ConfigField>& fields) {
  fields.push_back(
      choice("optimizer.type", SWITCHYARD_MEMBER(optimizer.type),
             Names<OptimizerType>{{"adamw", OptimizerType::adamw}, {"sgd", OptimizerType::sgd}},
             "update rule"));
  fields.push_back(
      real("optimizer.lr", SWITCHYARD_MEMBER(optimizer.lr), 0.0, 1e3, "largest learning rate"));
  fields.push_back(choice("optimizer.schedule.type", SWITCHYARD_MEMBER(optimizer.schedule.type),
                          Names<ScheduleType>{{"constant", ScheduleType::constant},
                                              {"cosine", ScheduleType::cosine},
                                              {"wsd", ScheduleType::wsd}},
                          "course of the learning rate after the warm-up; wsd: constant, then a "
                          "straight fall"));
  fields.push_back(count("optimizer.schedule.warmup_steps",
                         SWITCHYARD_MEMBER(optimizer.schedule.warmup_steps), 0,
                         "steps of a straight rise to lr"));
  fields.push_back(count("optimizer.schedule.decay_steps",
                         SWITCHYARD_MEMBER(optimizer.schedule.decay_steps), 0,
                         "cosine: length of the fall, 0: until max_steps; wsd: length of the fall "
                         "before max_steps"));
  fields.push_back(real("optimizer.schedule.min_lr", SWITCHYARD_MEMBER(optimizer.schedule.min_lr),
                        0.0, 1e3, "where the fall ends"));
  fields.push_back(real("optimizer.clip", SWITCHYARD_MEMBER(optimizer.clip), 0.0, 1e9,
                        "largest global gradient norm; 0: never clipped"));
  fields.push_back(real("optimizer.weight_decay", SWITCHYARD_MEMBER(optimizer.weight_decay), 0.0,
                        1e3, "not applied to norms and biases"));
  fields.push_back(
      real("optimizer.beta1", SWITCHYARD_MEMBER(optimizer.beta1), 0.0, 0.999999, "adamw"));
  fields.push_back(
      real("optimizer.beta2", SWITCHYARD_MEMBER(optimizer.beta2), 0.0, 0.999999, "adamw"));
  fields.push_back(real("optimizer.eps", SWITCHYARD_MEMBER(optimizer.eps), 0.0, 1.0, "adamw"));
  fields.push_back(
      real("optimizer.momentum", SWITCHYARD_MEMBER(optimizer.momentum), 0.0, 0.999999, "sgd"));
}

void add_train_and_output(std::vector<ConfigField>& fields) {
  fields.push_back(count("train.max_steps", SWITCHYARD_MEMBER(train.max_steps), 0,
                         "optimizer steps of the whole run"));
  fields.push_back(count("train.micro_batch_size", SWITCHYARD_MEMBER(train.micro_batch_size), 1,
                         "sequences per dp rank and pass"));
  fields.push_back(count("train.global_batch_size", SWITCHYARD_MEMBER(train.global_batch_size), 1,
                         "sequences per optimizer step; gradients accumulate over "
                         "global / (micro * dp) passes"));
  fields.push_back(count("train.eval_interval", SWITCHYARD_MEMBER(train.eval_interval), 0,
                         "steps between evaluations; 0: only after the last step"));
  fields.push_back(count("train.eval_batches", SWITCHYARD_MEMBER(train.eval_batches), 1,
                         "global batches per evaluation, from the start of the held-out file"));
  fields.push_back(count("checkpoint.interval", SWITCHYARD_MEMBER(checkpoint.interval), 0,
                         "steps between checkpoints; 0: after the last step, and on a signal"));
  fields.push_back(integer("checkpoint.keep", SWITCHYARD_MEMBER(checkpoint.keep), 0, 1 << 30,
                           "how many of the newest stay; 0: all"));
  fields.push_back(text("checkpoint.resume", SWITCHYARD_MEMBER(checkpoint.resume),
                        "auto: from the newest intact checkpoint of run.dir, if any | none | the "
                        "path of a checkpoint"));
  fields.push_back(count("log.interval", SWITCHYARD_MEMBER(log.interval), 1,
                         "steps between lines on the console"));
  fields.push_back(boolean("log.tensorboard", SWITCHYARD_MEMBER(log.tensorboard),
                           "write TensorBoard event files beside metrics.jsonl"));
}

void add_hash(std::vector<ConfigField>& fields) {
  fields.push_back(integer("hash.bits", SWITCHYARD_MEMBER(hash.bits), 32, 4096,
                           "length of a hash code, a multiple of 32"));
  fields.push_back(integer("hash.dense_layers", SWITCHYARD_MEMBER(hash.dense_layers), 0, 100000,
                           "leading layers without codes, whose attention stays exact"));
  fields.push_back(text("hash.weights", SWITCHYARD_MEMBER(hash.weights),
                        "file of the learned projections; empty: hash/hash_weights.h5 in run.dir"));
  fields.push_back(text("hash.training.tokens", SWITCHYARD_MEMBER(hash.training.tokens),
                        "train-hash: token file to learn from; empty: data.train"));
  fields.push_back(count("hash.training.seq_len", SWITCHYARD_MEMBER(hash.training.seq_len), 0,
                         "length of its sequences; 0: model.seq_len"));
  fields.push_back(count("hash.training.num_sequences",
                         SWITCHYARD_MEMBER(hash.training.num_sequences), 0,
                         "how many; one query position is drawn from each. 0: enough for about "
                         "131072 (query, key) pairs, and at least 11"));
  fields.push_back(count("hash.training.held_out_sequences",
                         SWITCHYARD_MEMBER(hash.training.held_out_sequences), 0,
                         "sequences of data.validation on which recall is measured; 0: none"));
  fields.push_back(real("hash.training.positive_share",
                        SWITCHYARD_MEMBER(hash.training.positive_share), 0.0, 1.0,
                        "share of a query's keys, those with the highest scores, that are "
                        "labelled as similar"));
  fields.push_back(real("hash.training.top_label", SWITCHYARD_MEMBER(hash.training.top_label), -1e6,
                        1e6, "label of the best key; labels fall in equal steps, by rank"));
  fields.push_back(real("hash.training.last_label", SWITCHYARD_MEMBER(hash.training.last_label),
                        -1e6, 1e6, "label of the last similar key"));
  fields.push_back(real("hash.training.negative_label",
                        SWITCHYARD_MEMBER(hash.training.negative_label), -1e6, 1e6,
                        "label of all other keys"));
  fields.push_back(choice(
      "hash.training.init", SWITCHYARD_MEMBER(hash.training.init),
      Names<HashInit>{{"orthogonal", HashInit::orthogonal}, {"gaussian", HashInit::gaussian}},
      "how projections begin"));
  fields.push_back(real("hash.training.sigma", SWITCHYARD_MEMBER(hash.training.sigma), 0.0, 1e6,
                        "steepness of the relaxed sign, 2 sigmoid(sigma x) - 1"));
  fields.push_back(real("hash.training.similarity_weight",
                        SWITCHYARD_MEMBER(hash.training.similarity_weight), 0.0, 1e6,
                        "factor of the similarity loss (the paper's epsilon)"));
  fields.push_back(real("hash.training.balance_weight",
                        SWITCHYARD_MEMBER(hash.training.balance_weight), 0.0, 1e6,
                        "factor of the bit balance loss (the paper's eta)"));
  fields.push_back(real("hash.training.decorrelation_weight",
                        SWITCHYARD_MEMBER(hash.training.decorrelation_weight), 0.0, 1e6,
                        "factor of ||W'W - I|| (the paper's lambda)"));
  fields.push_back(real("hash.training.decorrelation_softness",
                        SWITCHYARD_MEMBER(hash.training.decorrelation_softness), 0.0, 1e6,
                        "distance from orthogonality below which that norm's gradient shrinks, so "
                        "that descent comes to rest; 0: the paper's norm, which it jumps across"));
  fields.push_back(
      real("hash.training.lr", SWITCHYARD_MEMBER(hash.training.lr), 0.0, 1e3, "learning rate"));
  fields.push_back(real("hash.training.momentum", SWITCHYARD_MEMBER(hash.training.momentum), 0.0,
                        0.999999, "of the gradient descent"));
  fields.push_back(real("hash.training.weight_decay", SWITCHYARD_MEMBER(hash.training.weight_decay),
                        0.0, 1e3, "added to the gradient, as a share of the weights"));
  fields.push_back(integer("hash.training.epochs", SWITCHYARD_MEMBER(hash.training.epochs), 0,
                           1000000, "each with pairs drawn anew"));
  fields.push_back(integer("hash.training.iterations", SWITCHYARD_MEMBER(hash.training.iterations),
                           1, 1000000, "steps per epoch, each over all of its pairs"));
  fields.push_back(count("hash.training.pairs_per_epoch",
                         SWITCHYARD_MEMBER(hash.training.pairs_per_epoch), 1,
                         "(query, key) pairs of an epoch"));
  fields.push_back(boolean("hash.training.keep_query_keys",
                           SWITCHYARD_MEMBER(hash.training.keep_query_keys),
                           "leave the collected queries and keys on the disk, for a training with "
                           "other settings"));
}

Names<DecodeMethod> names_of(const std::vector<DecodeMethod>& methods) {
  Names<DecodeMethod> names;
  for (const DecodeMethod method : methods) names.emplace_back(to_string(method), method);
  return names;
}

void add_hash_evaluation(std::vector<ConfigField>& fields) {
  fields.push_back(choice_list(
      "hash.evaluation.methods", SWITCHYARD_MEMBER(hash.evaluation.methods),
      names_of(choosing_methods()), "eval-hash: what is measured beside dense decoding"));
  fields.push_back(real_list("hash.evaluation.budgets", SWITCHYARD_MEMBER(hash.evaluation.budgets),
                             0.0, 1e9, "each as decode.budget"));
  fields.push_back(count_list("hash.evaluation.bits", SWITCHYARD_MEMBER(hash.evaluation.bits), 32,
                              "of the hash methods, each a multiple of 32; empty: those whose "
                              "weights are there. Weights of other bits than hash.bits are "
                              "hash/hash_weights_BITS.h5 in run.dir"));
  fields.push_back(boolean("hash.evaluation.key_norm", SWITCHYARD_MEMBER(hash.evaluation.key_norm),
                           "measure hata with decode.key_norm, too"));
  fields.push_back(count("hash.evaluation.sequences", SWITCHYARD_MEMBER(hash.evaluation.sequences),
                         0, "sequences of data.validation; 0: all"));
}

void add_decode(std::vector<ConfigField>& fields) {
  std::vector<DecodeMethod> methods = choosing_methods();
  methods.insert(methods.begin(), DecodeMethod::dense);
  fields.push_back(choice("decode.attention", SWITCHYARD_MEMBER(decode.keys.method),
                          names_of(methods),
                          "generate, eval: how a new token chooses the keys that it attends to"));
  fields.push_back(real("decode.budget", SWITCHYARD_MEMBER(decode.keys.budget), 0.0, 1e9,
                        "how many keys: from 1 their number, below 1 their share of the context"));
  fields.push_back(count("decode.sink", SWITCHYARD_MEMBER(decode.keys.sink), 0,
                         "first keys that are always among them"));
  fields.push_back(count("decode.recent", SWITCHYARD_MEMBER(decode.keys.recent), 0,
                         "newest keys that are always among them"));
  fields.push_back(boolean("decode.key_norm", SWITCHYARD_MEMBER(decode.keys.key_norm),
                           "hata, random_hash: rank by the estimated cosine times the key's length "
                           "instead of the distance"));
  fields.push_back(count("decode.quest_page", SWITCHYARD_MEMBER(decode.keys.page_size), 1,
                         "quest: keys of a page"));
  fields.push_back(count("decode.loki_channels", SWITCHYARD_MEMBER(decode.keys.channels), 1,
                         "loki: principal axes that keys are compared along; at most as many as a "
                         "head is wide are used"));
  fields.push_back(count("decode.streaming_sink", SWITCHYARD_MEMBER(decode.keys.streaming_sink), 0,
                         "streaming: first keys that are kept; the newest fill the budget"));
  fields.push_back(count("decode.eval_tokens", SWITCHYARD_MEMBER(decode.eval_tokens), 0,
                         "eval with another attention than dense, eval-hash: the last tokens of a "
                         "held-out sequence, which are decoded one by one; 0: the lesser of 64 and "
                         "half of it. Recall tasks: from before the first answer on"));
}

#undef SWITCHYARD_MEMBER

}  // namespace

const std::vector<ConfigField>& config_schema() {
  static const std::vector<ConfigField> fields = [] {
    std::vector<ConfigField> all;
    add_run(all);
    add_model(all);
    add_router(all);
    add_parallel_and_data(all);
    add_recall(all);
    add_optimizer(all);
    add_train_and_output(all);
    add_hash(all);
    add_hash_evaluation(all);
    add_decode(all);
    return all;
  }();
  return fields;
}

}  // namespace switchyard
