#include "trainer/config/schema.h"

#include <algorithm>
#include <iterator>

#include "trainer/config/field_types.h"

namespace switchyard {
namespace {

using namespace field_types;

std::vector<ConfigField> run_fields() {
  return {
      text(SWITCHYARD_KEY(run.dir),
           "folder of all files of the run: checkpoints, metrics, event files"),
      integer(SWITCHYARD_KEY(run.seed), 0, kNoLimit,
              "decides initial weights, the order of samples and the tokens that are sampled"),
      text(SWITCHYARD_KEY(run.device),
           "cpu; with CUDA also cuda (each rank of a machine its own GPU) and cuda:N (all ranks "
           "share one)"),
      choice(SWITCHYARD_KEY(run.compute_dtype), {DType::f32, DType::bf16},
             "dtype of weights and activations in the passes; main weights, router, statistics and "
             "gradients of weights are f32"),
      integer(SWITCHYARD_KEY(run.collective_timeout), 1, kNoLimit,
              "seconds after which a rank that waits for the others ends with an error that names "
              "the step"),
  };
}

std::vector<ConfigField> model_fields() {
  return {
      choice(SWITCHYARD_KEY(model.structure), "type of the blocks' feed-forward"),
      count(SWITCHYARD_KEY(model.vocab_size), 0, "tokens of the vocabulary; 0: the tokenizer's"),
      count(SWITCHYARD_KEY(model.seq_len), 0, "context length"),
      count(SWITCHYARD_KEY(model.hidden), 0, "width of the residual stream"),
      integer(SWITCHYARD_KEY(model.num_layers), 0, 100000, "blocks"),
      integer(SWITCHYARD_KEY(model.num_heads), 0, 100000, "query heads"),
      integer(SWITCHYARD_KEY(model.num_kv_heads), 0, 100000,
              "key/value heads (grouped-query attention); 0: num_heads"),
      count(SWITCHYARD_KEY(model.head_dim), 0, "width of a head; 0: hidden / num_heads"),
      choice(SWITCHYARD_KEY(model.position), "position encoding"),
      real(SWITCHYARD_KEY(model.rope_theta), 1.0, 1e12, "base of the rotation's wavelengths"),
      count(SWITCHYARD_KEY(model.rotary_dim), 0,
            "channels of a head that turn, from its first one on; 0: all"),
      choice(SWITCHYARD_KEY(model.rope_scaling.type),
             "how the wavelengths are stretched for a longer context"),
      real(SWITCHYARD_KEY(model.rope_scaling.factor), 1.0, 1e6,
           "how much longer the context is than the one before"),
      count(SWITCHYARD_KEY(model.rope_scaling.original_seq_len), 0,
            "llama3 and yarn: the context length before"),
      real(SWITCHYARD_KEY(model.rope_scaling.low_freq_factor), 0.0, 1e6,
           "llama3: pairs that turn fewer times in the context before are stretched by factor"),
      real(SWITCHYARD_KEY(model.rope_scaling.high_freq_factor), 0.0, 1e6,
           "llama3: pairs that turn more often are left alone"),
      real(SWITCHYARD_KEY(model.rope_scaling.beta_fast), 0.0, 1e6,
           "yarn: pairs that turn more often are left alone"),
      real(SWITCHYARD_KEY(model.rope_scaling.beta_slow), 0.0, 1e6,
           "yarn: pairs that turn fewer times are stretched by factor"),
      real(SWITCHYARD_KEY(model.rope_scaling.attention_factor), 0.0, 1e6,
           "yarn: factor of cos and sin; 0: 0.1 ln(factor) + 1"),
      choice(SWITCHYARD_KEY(model.norm), "normalisation before attention, feed-forward and head"),
      real(SWITCHYARD_KEY(model.norm_eps), 0.0, 1.0, "added to the variance"),
      choice_once_boolean(
          SWITCHYARD_KEY(model.qk_norm), QkNormKind::none, QkNormKind::head,
          "RMSNorm of queries and keys before the rotation. head: of every head's vector (Qwen3); "
          "projection: of all heads together (OLMoE). false and true of older files: none, head"),
      choice_once_boolean(
          SWITCHYARD_KEY(model.bias), Biases::none, Biases::all,
          "which linear maps have biases. qkv: those to queries, keys and values (Qwen2); "
          "attention: its output, too; all: also dense feed-forwards (GPT-2). false and true of "
          "older files: none, all"),
      choice(SWITCHYARD_KEY(model.activation),
             "activation of every feed-forward; swiglu is gated, gelu is the tanh form"),
      boolean(SWITCHYARD_KEY(model.tie_embeddings), "the head uses the embedding's weight"),
      real(SWITCHYARD_KEY(model.init_std), 0.0, 10.0, "standard deviation of initial weights"),
      count(SWITCHYARD_KEY(model.ffn_hidden), 0, "inner width of dense feed-forwards"),
      integer(SWITCHYARD_KEY(model.first_dense_layers), 0, 100000,
              "leading blocks with a dense feed-forward"),
      integer(SWITCHYARD_KEY(model.num_experts), 0, 100000, "routed experts per layer"),
      count(SWITCHYARD_KEY(model.expert_ffn_hidden), 0, "inner width of a routed expert"),
      count(SWITCHYARD_KEY(model.latent), 0,
            "bigmac: width of the rows that travel to the experts (r * hidden)"),
      integer(SWITCHYARD_KEY(model.num_shared_experts), 0, 100000,
              "experts that every token visits"),
      count(SWITCHYARD_KEY(model.shared_expert_ffn_hidden), 0, "inner width of a shared expert"),
      boolean(SWITCHYARD_KEY(model.shared_expert_gate),
              "the shared experts' output is multiplied by the sigmoid of a linear map of the "
              "token (Qwen1.5-MoE)"),
  };
}

std::vector<ConfigField> router_fields() {
  return {
      choice(SWITCHYARD_KEY(model.router.score), "function from logits to scores"),
      integer(SWITCHYARD_KEY(model.router.top_k), 1, 1024, "experts per token"),
      integer(SWITCHYARD_KEY(model.router.num_groups), 1, 1024,
              "groups of neighbouring experts, from the best of which a token's experts come"),
      integer(SWITCHYARD_KEY(model.router.groups_per_token), 1, 1024,
              "groups that a token's experts come from; a group's score is the sum of its two "
              "greatest scores (sigmoid: DeepSeek-V3), or the greatest (softmax: DeepSeek-V2), "
              "with the bias of loss-free balancing"),
      boolean(SWITCHYARD_KEY(model.router.normalize_topk), "divide the chosen scores by their sum"),
      real(SWITCHYARD_KEY(model.router.routed_scaling_factor), 0.0, 1e6,
           "factor of the chosen weights"),
      choice(SWITCHYARD_KEY(model.router.balance_scope),
             "tokens over which the balance loss counts; global_batch costs an extra forward pass "
             "under gradient accumulation"),
      real(SWITCHYARD_KEY(model.router.aux_loss_coef), 0.0, 1e6,
           "factor of the balance loss; 0: off"),
      real(SWITCHYARD_KEY(model.router.z_loss_coef), 0.0, 1e6,
           "factor of the router's z-loss; 0: off"),
      real(SWITCHYARD_KEY(model.router.bias_update_rate), 0.0, 1.0,
           "loss-free balancing: how far an expert's bias moves per step; 0: off"),
      real(SWITCHYARD_KEY(model.router.capacity_factor), 0.0, 1e6,
           "most assignments per (sequence, expert), as a multiple of the mean; 0: dropless"),
      choice(SWITCHYARD_KEY(model.router.drop_policy),
             "which assignments are dropped over capacity"),
      boolean(SWITCHYARD_KEY(model.router.force_balanced),
              "benchmarks only: tokens are assigned to experts in turn"),
  };
}

std::vector<ConfigField> parallel_fields() {
  return {
      integer(SWITCHYARD_KEY(parallel.tp), 1, 1 << 20,
              "ranks that split attention and dense layers; dp = ranks / tp"),
      integer(SWITCHYARD_KEY(parallel.ep), 1, 1 << 20,
              "ranks that split the experts; divides the number of ranks"),
      choice_once_boolean(
          SWITCHYARD_KEY(parallel.deduplicate), Deduplicate::none, Deduplicate::rank,
          "a token with several experts on one rank, or on one host whose ranks spread it among "
          "them, is sent there once. host: where links between hosts are slow; needs as many ranks "
          "of an ep group on each of its hosts. false and true of older files: none, rank"),
      integer(
          SWITCHYARD_KEY(parallel.exchange_chunks), 0, 64,
          "parts in which a micro-batch's tokens are sent to their experts, so that one part's "
          "transfer overlaps with the work on another; 0: 4 over NCCL, measured at the start of "
          "training where MPI works in the background, else 1"),
      boolean(SWITCHYARD_KEY(parallel.recompute),
              "keep only block inputs and run each block again in the backward pass"),
  };
}

std::vector<ConfigField> data_fields() {
  return {
      sources(SWITCHYARD_KEY(data.train),
              "token file to train on, or a list of {path, weight}: each file gives its weight's "
              "share of the samples (weight: 1 unless given, kept to a millionth)"),
      sources(SWITCHYARD_KEY(data.validation),
              "held-out token file, or a list of {path, name}, whose losses are also logged one by "
              "one (name: that of the file unless given); empty: no evaluation"),
      choice(SWITCHYARD_KEY(data.tokenizer.type),
             "how text becomes tokens; huggingface: as a tokenizer.json says; recall: generated "
             "retrieval tasks, of which only the answers are trained on and evaluated"),
      text(SWITCHYARD_KEY(data.tokenizer.model),
           "sentencepiece: the .model file; `tokenize` trains it if it is missing; "
           "huggingface: the tokenizer.json"),
      count(SWITCHYARD_KEY(data.tokenizer.vocab_size), 0, "sentencepiece: pieces to train"),
      text(SWITCHYARD_KEY(data.tokenizer.end_of_document),
           "huggingface: text of the token that ends a document; empty: the eos_token of the "
           "tokenizer_config.json beside the file, else eos_token_id of generation_config.json"),
      choice(SWITCHYARD_KEY(data.mask),
             "document: no token attends to another document, and the first token of a document is "
             "no target; positions, learned ones too, count from the start of the sequence. "
             "`generate` takes a prompt and what follows it for one document"),
      text_list(
          SWITCHYARD_KEY(data.text),
          "`tokenize`: text files, or folders that are searched for *.txt, *.rst, *.md, "
          "*.jsonl and their .gz and .zst, through links; one document per file, or per line "
          "of a .jsonl file. Or token arrays: *.bin, beside it the *.idx if it is Megatron's"),
      choice(SWITCHYARD_KEY(data.record),
             "`tokenize`: what a line of a .jsonl file holds. text: a string. prompt_completion: "
             "strings of these names, of which the completion is learned. segments: a list of "
             "{text, learn}"),
      text(SWITCHYARD_KEY(data.text_field),
           "`tokenize`: the key of the text, or of the list of segments; a.b is b in the object a"),
      count(SWITCHYARD_KEY(data.max_bad_records), 0,
            "`tokenize`: lines of .jsonl files that may be unreadable; they are left out, counted "
            "and named. One more is an error"),
      choice(SWITCHYARD_KEY(data.array_dtype),
             "`tokenize`: the numbers of a *.bin without *.idx, little-endian"),
      choice(SWITCHYARD_KEY(data.encoding_errors),
             "`tokenize`, and tasks.haystack: what becomes of bytes that are not UTF-8. strict: an "
             "error that names the "
             "first one; only byte tokens keep them. replace: U+FFFD for each part of a character, "
             "counted"),
      real(SWITCHYARD_KEY(data.validation_share), 0.0, 0.5,
           "`tokenize`: share of the documents that is held out; where they are too few for that, "
           "this share of the end of each"),
  };
}

std::vector<ConfigField> recall_fields() {
  return {
      integer(SWITCHYARD_KEY(data.recall.seed), 0, kNoLimit, "decides the samples"),
      choice_list(SWITCHYARD_KEY(data.recall.tasks), all_but(RecallTask::practice),
                  "tasks of the samples, in turn"),
      count(SWITCHYARD_KEY(data.recall.train_sequences), 0,
            "`tokenize`: sequences of model.seq_len tokens to train on"),
      count(SWITCHYARD_KEY(data.recall.validation_sequences), 0,
            "`tokenize`: held-out sequences of one sample each"),
      count(SWITCHYARD_KEY(data.recall.shortest), 0,
            "training samples are as long as a sequence, half of it, a quarter ..., but not "
            "shorter than this; 0: as long as a sequence"),
      real(SWITCHYARD_KEY(data.recall.practice_share), 0.0, 1.0,
           "share of the training samples that practise looking things up, with many answers each, "
           "instead of having a task"),
      real(SWITCHYARD_KEY(data.recall.train_share), 0.0, 0.9,
           "largest share of a training sample that questions, and the needles that they ask for, "
           "may take; held-out samples have one question"),
      real(SWITCHYARD_KEY(data.recall.distractor_share), 0.0, 0.9,
           "multi_key: share of a sample that needles take"),
      integer(SWITCHYARD_KEY(data.recall.values), 1, 8, "multi_value: values of a key"),
      integer(SWITCHYARD_KEY(data.recall.queries), 1, 64,
              "multi_query: keys that a held-out sample asks for"),
      integer(SWITCHYARD_KEY(data.recall.hops), 0, 8,
              "variable_tracking: assignments from variable to variable in a chain"),
  };
}

std::vector<ConfigField> optimizer_fields() {
  return {
      choice(SWITCHYARD_KEY(optimizer.type),
             "update rule; muon: for hidden matrices, and adamw for everything else"),
      real(SWITCHYARD_KEY(optimizer.lr), 0.0, 1e3, "largest learning rate"),
      choice(SWITCHYARD_KEY(optimizer.schedule.type),
             "course of the learning rate after the warm-up; wsd: constant, then a straight fall"),
      count(SWITCHYARD_KEY(optimizer.schedule.warmup_steps), 0,
            "steps of a straight rise: step s of w has lr * s / (w + 1), and step w + 1 is the "
            "first one with lr"),
      count(SWITCHYARD_KEY(optimizer.schedule.decay_steps), 0,
            "cosine: length of the fall, 0: until max_steps; wsd: length of the fall before "
            "max_steps"),
      real(SWITCHYARD_KEY(optimizer.schedule.min_lr), 0.0, 1e3,
           "learning rate at the end of the fall; where that is the end of the run, one step after "
           "the last one"),
      real(SWITCHYARD_KEY(optimizer.clip), 0.0, 1e9,
           "largest global gradient norm; 0: never clipped"),
      real(SWITCHYARD_KEY(optimizer.weight_decay), 0.0, 1e3,
           "not applied to norms and biases; adamw and muon: decoupled from the gradient; sgd: "
           "coupled, added to the gradient before the momentum"),
      real(SWITCHYARD_KEY(optimizer.beta1), 0.0, 0.999999, "adamw, muon"),
      real(SWITCHYARD_KEY(optimizer.beta2), 0.0, 0.999999, "adamw, muon"),
      real(SWITCHYARD_KEY(optimizer.eps), 0.0, 1.0, "adamw, muon"),
      real(SWITCHYARD_KEY(optimizer.momentum), 0.0, 0.999999, "sgd"),
      real(SWITCHYARD_KEY(optimizer.muon.momentum), 0.0, 0.999999,
           "muon: momentum of hidden matrices"),
      boolean(SWITCHYARD_KEY(optimizer.muon.nesterov), "muon: look ahead by the momentum"),
      integer(SWITCHYARD_KEY(optimizer.muon.ns_steps), 1, 20,
              "muon: steps of the Newton-Schulz iteration"),
  };
}

std::vector<ConfigField> train_fields() {
  return {
      count(SWITCHYARD_KEY(train.max_steps), 0, "optimizer steps of the whole run"),
      count(SWITCHYARD_KEY(train.micro_batch_size), 1, "sequences per dp rank and pass"),
      count(SWITCHYARD_KEY(train.global_batch_size), 1,
            "sequences per optimizer step; gradients accumulate over global / (micro * dp) passes"),
      count(SWITCHYARD_KEY(train.eval_interval), 0,
            "steps between evaluations; 0: only after the last step"),
      count(SWITCHYARD_KEY(train.eval_batches), 1,
            "global batches per evaluation, from the start of each held-out file"),
  };
}

std::vector<ConfigField> checkpoint_and_log_fields() {
  return {
      count(SWITCHYARD_KEY(checkpoint.interval), 0,
            "steps between checkpoints; 0: only after the last step, and on a signal"),
      integer(SWITCHYARD_KEY(checkpoint.keep), 0, 1 << 30,
              "newest checkpoints that are kept; 0: all"),
      text(SWITCHYARD_KEY(checkpoint.resume),
           "auto: from the newest intact checkpoint of run.dir, if any | none: a fresh start; an "
           "earlier run in run.dir is moved aside | the path of a checkpoint or run, where the run "
           "begins; it goes on from its own checkpoints when it has some that came from there | "
           "weights:PATH: the same, but the run begins at step 0 with the weights alone, for "
           "fine-tuning: a fresh optimizer and schedule, and other data"),
      count(SWITCHYARD_KEY(log.interval), 1, "steps between lines on the console"),
      boolean(SWITCHYARD_KEY(log.tensorboard),
              "write TensorBoard event files beside metrics.jsonl"),
  };
}

std::vector<ConfigField> hash_fields() {
  return {
      integer(SWITCHYARD_KEY(hash.bits), 32, kMostHashBits,
              "length of a hash code, a multiple of 32"),
      integer(SWITCHYARD_KEY(hash.dense_layers), 0, 100000,
              "leading layers without codes, whose attention stays exact"),
      text(SWITCHYARD_KEY(hash.weights),
           "file of the learned projections; empty: hash/hash_weights.h5 in run.dir"),
      choice(SWITCHYARD_KEY(hash.training.objective),
             "what train-hash learns. ranking: keys by levels of their columns, queries by finer "
             "ones, a loss "
             "on the order of keys; paper: signs of both, HATA's objective"),
      count(
          SWITCHYARD_KEY(hash.training.ranking.steps), 0,
          "ranking: steps of Adam, each over the queries of one sequence; 0: the closed form that "
          "they begin with"),
      real(SWITCHYARD_KEY(hash.training.ranking.lr), 0.0, 1.0,
           "ranking: learning rate relative to the size of the weights; it falls to 0"),
      text(SWITCHYARD_KEY(hash.training.tokens),
           "train-hash: token file to learn from; empty: data.train"),
      count(SWITCHYARD_KEY(hash.training.seq_len), 0, "length of its sequences; 0: model.seq_len"),
      count(SWITCHYARD_KEY(hash.training.num_sequences), 0,
            "number of sequences. 0: enough that one query of each sees about 131072 keys in all, "
            "and at least 11"),
      count(SWITCHYARD_KEY(hash.training.queries), 0,
            "query positions that are drawn from each sequence; 0: 64 for ranking, 1 for paper"),
      count(SWITCHYARD_KEY(hash.training.held_out_sequences), 0,
            "sequences of data.validation on which recall is measured; 0: none"),
      real(SWITCHYARD_KEY(hash.training.positive_share), 0.0, 1.0,
           "paper, as all that follow up to pairs_per_epoch: share of a query's keys, those with "
           "the "
           "highest scores, that are labelled as similar"),
      real(SWITCHYARD_KEY(hash.training.top_label), -1e6, 1e6,
           "label of the best key; labels fall in equal steps, by rank"),
      real(SWITCHYARD_KEY(hash.training.last_label), -1e6, 1e6, "label of the last similar key"),
      real(SWITCHYARD_KEY(hash.training.negative_label), -1e6, 1e6, "label of all other keys"),
      choice(SWITCHYARD_KEY(hash.training.init), "initial projections"),
      real(SWITCHYARD_KEY(hash.training.sigma), 0.0, 1e6,
           "steepness of the relaxed sign, 2 sigmoid(sigma x) - 1"),
      real(SWITCHYARD_KEY(hash.training.similarity_weight), 0.0, 1e6,
           "factor of the similarity loss (the paper's epsilon)"),
      real(SWITCHYARD_KEY(hash.training.balance_weight), 0.0, 1e6,
           "factor of the bit balance loss (the paper's eta)"),
      real(SWITCHYARD_KEY(hash.training.decorrelation_weight), 0.0, 1e6,
           "factor of ||W'W - I|| (the paper's lambda)"),
      real(SWITCHYARD_KEY(hash.training.decorrelation_softness), 0.0, 1e6,
           "distance from orthogonality below which the gradient of ||W'W - I|| shrinks, so that "
           "descent converges; 0: the paper's norm, whose minimum descent steps across"),
      real(SWITCHYARD_KEY(hash.training.lr), 0.0, 1e3, "learning rate"),
      real(SWITCHYARD_KEY(hash.training.momentum), 0.0, 0.999999,
           "momentum of the gradient descent"),
      real(SWITCHYARD_KEY(hash.training.weight_decay), 0.0, 1e3,
           "added to the gradient, as a share of the weights"),
      integer(SWITCHYARD_KEY(hash.training.epochs), 0, 1000000,
              "epochs, each with newly drawn pairs"),
      integer(SWITCHYARD_KEY(hash.training.iterations), 1, 1000000,
              "steps per epoch, each over all of its pairs"),
      count(SWITCHYARD_KEY(hash.training.pairs_per_epoch), 1, "(query, key) pairs of an epoch"),
      boolean(
          SWITCHYARD_KEY(hash.training.keep_query_keys),
          "keep the collected queries and keys on the disk, for a training with other settings"),
  };
}

std::vector<ConfigField> hash_evaluation_fields() {
  return {
      choice_list(SWITCHYARD_KEY(hash.evaluation.methods), all_but(DecodeMethod::dense),
                  "eval-hash, eval-tasks: methods measured in addition to dense decoding"),
      real_list(SWITCHYARD_KEY(hash.evaluation.budgets), 0.0, 1e9,
                "budgets to measure, each as decode.budget"),
      count_list(
          SWITCHYARD_KEY(hash.evaluation.bits), 32,
          "code lengths of the hash methods, each a multiple of 32; empty: all whose weights "
          "exist. "
          "Weights of lengths other than hash.bits are hash/hash_weights_BITS.h5 in run.dir"),
      boolean(SWITCHYARD_KEY(hash.evaluation.key_norm), "measure hata with decode.key_norm, too"),
      count(SWITCHYARD_KEY(hash.evaluation.sequences), 0,
            "sequences of data.validation, from each of its files; 0: all"),
      count(SWITCHYARD_KEY(hash.evaluation.seq_len), 0,
            "eval-hash: length of its sequences; 0: model.seq_len"),
  };
}

// The members of decode.keys, a struct of layers/, are keys of the section decode itself.
#define SWITCHYARD_DECODE_KEY(member) \
  make_key("decode." #member, SWITCHYARD_MEMBER(decode.keys.member))

std::vector<ConfigField> decode_fields() {
  return {
      choice(make_key("decode.attention", SWITCHYARD_MEMBER(decode.keys.method)),
             "generate, eval: how a new token chooses the keys that it attends to"),
      real(SWITCHYARD_DECODE_KEY(budget), 0.0, 1e9,
           "keys to attend to: from 1 on their number, below 1 their share of the context"),
      count(SWITCHYARD_DECODE_KEY(sink), 0, "first keys that are always chosen"),
      count(SWITCHYARD_DECODE_KEY(recent), 0, "newest keys that are always chosen"),
      boolean(SWITCHYARD_DECODE_KEY(key_norm),
              "hata, random_hash: rank keys by the estimated cosine times the key's length instead "
              "of the distance"),
      count(make_key("decode.quest_page", SWITCHYARD_MEMBER(decode.keys.page_size)), 1,
            "quest: keys of a page"),
      count(make_key("decode.loki_channels", SWITCHYARD_MEMBER(decode.keys.channels)), 1,
            "loki: principal axes along which keys are compared; at most the width of a head is "
            "used"),
      count(SWITCHYARD_DECODE_KEY(streaming_sink), 0,
            "streaming: first keys that are kept; the newest fill the budget"),
      integer(SWITCHYARD_DECODE_KEY(magicpig_bits), 1, 16,
              "magicpig: bits of a bucket, K of the paper"),
      count(SWITCHYARD_DECODE_KEY(magicpig_tables), 2, "magicpig: hash tables, L of the paper"),
      count(SWITCHYARD_DECODE_KEY(magicpig_sink), 0,
            "magicpig: first keys of the prompt, which are always attended to"),
      count(SWITCHYARD_DECODE_KEY(magicpig_local), 0,
            "magicpig: last keys of the prompt, which are always attended to, as all later ones"),
      count(SWITCHYARD_DECODE_KEY(snapkv_window), 1,
            "snapkv: last queries of the prompt, which vote for its keys and whose keys are kept"),
      count(SWITCHYARD_DECODE_KEY(snapkv_kernel), 1,
            "snapkv: positions over which votes are pooled, an odd number"),
      count(SWITCHYARD_KEY(decode.eval_tokens), 0,
            "eval (unless decode.attention is dense) and eval-hash: how many of a held-out "
            "sequence's last tokens are decoded one by one; 0: the lesser of 64 and half the "
            "sequence. In recall tasks decoding starts at the latest before the first answer"),
      choice(SWITCHYARD_KEY(decode.offload),
             "generate with dense, hata or random_hash: where keys and values are. none: on the "
             "device; memory: in host memory; file: in a file in run.dir, CPU only"),
  };
}

std::vector<ConfigField> text_tasks_fields() {
  return {
      choice_list(SWITCHYARD_KEY(tasks.names), all_values<TextTask>(),
                  "eval-tasks: tasks of RULER that are asked in English"),
      count_list(SWITCHYARD_KEY(tasks.lengths), 1,
                 "tokens of a prompt and the answer that may follow; empty: model.seq_len"),
      count(SWITCHYARD_KEY(tasks.samples), 1, "samples of each task and length"),
      integer(SWITCHYARD_KEY(tasks.seed), 0, kNoLimit, "decides the samples"),
      text_list(
          SWITCHYARD_KEY(tasks.haystack),
          "text files or folders, as data.text: the running text in which needles are hidden, from "
          "documents of the first 16 MiB; repeated where it is short"),
      text(SWITCHYARD_KEY(tasks.prefix),
           "text before a task, for a chat model the begin of the user's turn"),
      text(SWITCHYARD_KEY(tasks.suffix),
           "text between a task and the first words of its answer, which are given: for a chat "
           "model the end of the user's turn and the begin of its own"),
      integer(SWITCHYARD_KEY(tasks.keys), 1, 64,
              "niah_multikey_1: needles of different keys, of which one is asked for"),
      integer(SWITCHYARD_KEY(tasks.values), 1, 64, "niah_multivalue: values of the key"),
      integer(SWITCHYARD_KEY(tasks.queries), 1, 64,
              "niah_multiquery: keys, all of which are asked for"),
      integer(SWITCHYARD_KEY(tasks.hops), 0, 64,
              "vt: assignments from variable to variable, after that of a number"),
      real(SWITCHYARD_KEY(tasks.least_dense), 0.0, 1.0,
           "share of answers that dense decoding must find in the samples of a task and length, or "
           "the methods do not decode them"),
  };
}

}  // namespace

const std::vector<ConfigField>& config_schema() {
  static const std::vector<ConfigField> fields = [] {
    std::vector<ConfigField> all;
    for (const auto section :
         {run_fields, model_fields, router_fields, parallel_fields, data_fields, recall_fields,
          optimizer_fields, train_fields, checkpoint_and_log_fields, hash_fields,
          hash_evaluation_fields, decode_fields, text_tasks_fields}) {
      std::ranges::move(section(), std::back_inserter(all));
    }
    for (ConfigField& field : all) field.decides = decided_by(field.key);
    return all;
  }();
  return fields;
}

}  // namespace switchyard
