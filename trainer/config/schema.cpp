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
    if (!parse_number(text, &value) || !std::isfinite(value)) {
      return fmt::format("expected a number, not '{}'", text);
    }
    if (value < lowest || value > highest) {
      return fmt::format("must be from {} to {}, not {}", lowest, highest, text);
    }
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
  fields.push_back(integer("run.collective_timeout", SWITCHYARD_MEMBER(run.collective_timeout), 1,
                           kNoLimit,
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
  fields.push_back(integer("parallel.exchange_chunks", SWITCHYARD_MEMBER(parallel.exchange_chunks), 0,
                           64,
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
  fields.push_back(choice_list("data.recall.tasks", SWITCHYARD_MEMBER(data.recall.tasks),
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
  fields.push_back(real("data.recall.practice_share",
                        SWITCHYARD_MEMBER(data.recall.practice_share), 0.0, 1.0,
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
    return all;
  }();
  return fields;
}

}  // namespace switchyard
