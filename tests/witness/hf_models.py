"""The architectures that `switchyard export` writes, in numpy, from a folder's config.json and
safetensors alone: a reader that shares nothing with the program. It follows the modeling files of
transformers 5 (llama, qwen2, qwen3, mixtral, qwen2_moe, qwen3_moe, olmoe, glm4_moe, gpt2,
nemotron_h); their names and shapes are the specification."""

import json
import math
import pathlib
import struct

import numpy as np


def read_safetensors(folder):
    """{name: f64 array} of all files of a folder."""
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        for name, entry in json.loads(data[8:8 + size]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                bits = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
                values = bits.view(np.float32)
            else:
                values = np.frombuffer(data[begin:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
            assert name not in tensors, name
            tensors[name] = values.reshape(entry["shape"]).astype(float)
    return tensors


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
}


def inverse_frequencies(rope, dim):
    """modeling_rope_utils.py: default, linear, llama3, yarn."""
    theta, kind = rope["rope_theta"], rope["rope_type"]
    freq = theta ** -(np.arange(0, dim, 2) / dim)
    if kind == "linear":
        return freq / rope["factor"], 1.0
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        length = rope["original_max_position_embeddings"]
        wavelength = 2 * math.pi / freq
        smooth = (length / wavelength - low) / (high - low)
        middle = (1 - smooth) * freq / rope["factor"] + smooth * freq
        scaled = np.where(wavelength > length / low, freq / rope["factor"], freq)
        between = (wavelength >= length / high) & (wavelength <= length / low)
        return np.where(between, middle, scaled), 1.0
    if kind == "yarn":
        def correction(turns):
            length = rope["original_max_position_embeddings"]
            return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        low = max(math.floor(correction(rope["beta_fast"])), 0)
        high = min(math.ceil(correction(rope["beta_slow"])), dim - 1)
        high += 0.001 if low == high else 0
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
        return freq / rope["factor"] * ramp + freq * (1 - ramp), rope["attention_factor"]
    assert kind == "default", kind
    return freq, 1.0


def rotate(x, rope):
    """x [heads, positions, head_dim]; the first channels turn, in halves."""
    dim = int(x.shape[-1] * rope["partial_rotary_factor"])
    freq, factor = inverse_frequencies(rope, dim)
    angles = np.outer(np.arange(x.shape[1]), freq)
    cos, sin = factor * np.cos(angles), factor * np.sin(angles)
    a, b, rest = x[..., :dim // 2], x[..., dim // 2:dim], x[..., dim:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Weights:
    def __init__(self, folder):
        self.config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.tensors = read_safetensors(folder)
        self.read = set()

    def __contains__(self, name):
        return name in self.tensors

    def __getitem__(self, name):
        self.read.add(name)
        return self.tensors[name]

    def linear(self, x, name):
        y = x @ self[name + ".weight"].T
        return y + self[name + ".bias"] if name + ".bias" in self else y


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def attention(w, x, prefix, rope, eps):
    """Grouped queries; norms of q and k per head, or over the whole projection (olmoe)."""
    c = w.config
    heads, kv_heads, dim = (c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
    q, k, v = (w.linear(x, f"{prefix}{name}_proj") for name in "qkv")
    whole = c["model_type"] == "olmoe"
    if whole:
        q, k = (rms_norm(y, w[f"{prefix}{n}_norm.weight"], eps) for y, n in ((q, "q"), (k, "k")))
    q, k, v = (y.reshape(len(x), -1, dim).swapaxes(0, 1) for y in (q, k, v))
    if prefix + "q_norm.weight" in w and not whole:
        q, k = (rms_norm(y, w[f"{prefix}{n}_norm.weight"], eps) for y, n in ((q, "q"), (k, "k")))
    if rope:
        q, k = rotate(q, rope), rotate(k, rope)
    k, v = (np.repeat(y, heads // kv_heads, 0) for y in (k, v))
    scores = q @ k.swapaxes(1, 2) / math.sqrt(dim)
    scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
    y = (softmax(scores) @ v).swapaxes(0, 1).reshape(len(x), heads * dim)
    return w.linear(y, prefix + "o_proj")


def feed_forward(w, x, prefix, act, names=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = names
    if prefix + gate + ".weight" in w:
        return w.linear(act(w.linear(x, prefix + gate)) * w.linear(x, prefix + up), prefix + down)
    return w.linear(act(w.linear(x, prefix + up)), prefix + down)


def route(w, x, prefix):
    """(experts [tokens, k], weights [tokens, k])"""
    c = w.config
    logits = x @ w[prefix + "gate.weight"].T
    is_sigmoid = c["model_type"] in ("glm4_moe", "nemotron_h")
    scores = sigmoid(logits) if is_sigmoid else softmax(logits)
    choice = scores + w[prefix + "gate.e_score_correction_bias"] if is_sigmoid else scores
    groups = c.get("n_group", 1)
    if is_sigmoid and groups > 1:
        grouped = choice.reshape(len(x), groups, -1)
        best = np.sort(grouped, -1)[..., -2:].sum(-1)
        kept = np.argsort(-best, -1, kind="stable")[:, :c["topk_group"]]
        mask = np.full(best.shape, -np.inf)
        np.put_along_axis(mask, kept, 0, -1)
        choice = (grouped + mask[..., None]).reshape(choice.shape)
    experts = np.argsort(-choice, -1, kind="stable")[:, :c["num_experts_per_tok"]]
    weights = np.take_along_axis(scores, experts, -1)
    if c["model_type"] == "mixtral" or c.get("norm_topk_prob"):
        weights = weights / (weights.sum(-1, keepdims=True) + (1e-20 if is_sigmoid else 0))
    return experts, weights * c.get("routed_scaling_factor", 1.0)


def moe(w, x, prefix, act):
    c = w.config
    names = ("w1", "w3", "w2") if c["model_type"] == "mixtral" else ("gate_proj", "up_proj",
                                                                     "down_proj")
    experts, weights = route(w, x, prefix)
    latent = "fc1_latent_proj"
    inner = w.linear(x, prefix + latent) if prefix + latent + ".weight" in w else x
    y = np.zeros_like(inner)
    for e in range(int(w[prefix + "gate.weight"].shape[0])):
        for tokens, slot in zip(*np.nonzero(experts == e)):
            row = feed_forward(w, inner[tokens][None], f"{prefix}experts.{e}.", act, names)[0]
            y[tokens] += weights[tokens, slot] * row
        for name in names:  # an expert without tokens is still read
            w.read.add(f"{prefix}experts.{e}.{name}.weight")
    if inner is not x:
        y = w.linear(y, prefix + "fc2_latent_proj")
    if prefix + "shared_experts.up_proj.weight" in w:
        y = y + feed_forward(w, x, prefix + "shared_experts.", act)
    if prefix + "shared_expert_gate.weight" in w:
        gate = sigmoid(x @ w[prefix + "shared_expert_gate.weight"].T)
        y = y + gate * feed_forward(w, x, prefix + "shared_expert.", act)
    return y


def llama_logits(w, tokens):
    c = w.config
    eps, act = c["rms_norm_eps"], ACTIVATIONS[c["hidden_act"]]
    x = w["model.embed_tokens.weight"][tokens]
    turning = 0.5 if c["model_type"] == "glm4_moe" else 1.0  # where the file does not say it
    rope = {"partial_rotary_factor": turning, **c["rope_parameters"]}
    for layer in range(c["num_hidden_layers"]):
        root = f"model.layers.{layer}."
        normed = rms_norm(x, w[root + "input_layernorm.weight"], eps)
        x = x + attention(w, normed, root + "self_attn.", rope, eps)
        normed = rms_norm(x, w[root + "post_attention_layernorm.weight"], eps)
        block = root + ("block_sparse_moe." if c["model_type"] == "mixtral" else "mlp.")
        is_moe = block + "gate.weight" in w
        x = x + (moe if is_moe else feed_forward)(w, normed, block, act)
    x = rms_norm(x, w["model.norm.weight"], eps)
    head = "model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"
    return x @ w[head].T


def nemotron_logits(w, tokens):
    c = w.config
    eps, act = c["layer_norm_epsilon"], ACTIVATIONS[c["mlp_hidden_act"]]
    x = w["model.embeddings.weight"][tokens]
    for layer, kind in enumerate(c["hybrid_override_pattern"]):
        root = f"model.layers.{layer}."
        normed = rms_norm(x, w[root + "norm.weight"], eps)
        if kind == "*":
            x = x + attention(w, normed, root + "mixer.", None, eps)
        else:
            x = x + {"E": moe, "-": feed_forward}[kind](w, normed, root + "mixer.", act)
    return rms_norm(x, w["model.norm_f.weight"], eps) @ w["lm_head.weight"].T


def gpt2_logits(w, tokens):
    c = w.config
    eps, heads = c["layer_norm_epsilon"], c["n_head"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return rms_norm(x, w[name + ".weight"], eps) + w[name + ".bias"]

    def conv(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:len(tokens)]
    for layer in range(c["n_layer"]):
        root = f"transformer.h.{layer}."
        qkv = conv(norm(x, root + "ln_1"), root + "attn.c_attn")
        q, k, v = (y.reshape(len(x), heads, -1).swapaxes(0, 1) for y in np.split(qkv, 3, -1))
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        y = (softmax(scores) @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = x + conv(y, root + "attn.c_proj")
        inner = ACTIVATIONS[c["activation_function"]](conv(norm(x, root + "ln_2"), root + "mlp.c_fc"))
        x = x + conv(inner, root + "mlp.c_proj")
    head = "transformer.wte.weight" if c["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, "transformer.ln_f") @ w[head].T


def logits(folder, tokens):
    """(logits [tokens, vocabulary], names of tensors that were not read)"""
    w = Weights(folder)
    kind = w.config["model_type"]
    model = {"gpt2": gpt2_logits, "nemotron_h": nemotron_logits}.get(kind, llama_logits)
    return model(w, np.asarray(tokens)), set(w.tensors) - w.read
