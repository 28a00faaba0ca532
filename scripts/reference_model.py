"""The specification of a Switchyard model's forward pass, in NumPy and float64.

It follows the papers that it names and shares no code with the program; tests/witness compares the
two. scripts/reference_forward.py runs it on a checkpoint.

Weights are stored [out, in], so that a linear map is x @ W.T. Shapes below: B sequences, S tokens
of each, T = B * S, H the width of the model, E experts, k experts per token, V the vocabulary.
"""

import math

import numpy as np


def log_sum_exp(x):
    top = x.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


def softmax(x):
    return np.exp(x - log_sum_exp(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def activate(kind, up, gate):
    """The activation of a feed-forward: swiglu (Shazeer 2020), the only one with a gate, gelu with
    tanh (Hendrycks and Gimpel 2016), relu2 (So et al. 2021)."""
    return {"swiglu": lambda: gate * sigmoid(gate) * up,
            "silu": lambda: up * sigmoid(up),
            "gelu": lambda: up * sigmoid(2 * math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)),
            "relu": lambda: np.maximum(up, 0),
            "relu2": lambda: np.maximum(up, 0) ** 2}[kind]()


def rms_norm(x, weight, eps):
    """Zhang and Sennrich 2019."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rope_frequencies(config):
    """Angle per position of each pair: theta^(-2i/D) (Su et al. 2021), for a longer context divided
    by a factor: of every pair (linear: Chen et al. 2023), or of those that turn seldom in the
    context before (llama3: by turns; yarn, Peng et al. 2023: by the pair's number)."""
    dim, scaling = config["rotary_dim"] or config["head_dim"], config["rope_scaling"]
    pair, theta = np.arange(dim // 2), config["rope_theta"]
    frequency, context = theta ** (-2 * pair / dim), scaling["original_seq_len"]
    if scaling["type"] == "none":
        return frequency
    if scaling["type"] == "linear":
        stretched = 1
    elif scaling["type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        stretched = np.clip((high - context * frequency / (2 * math.pi)) / (high - low), 0, 1)
    else:
        first, last = (math.log(context / (2 * math.pi * turns)) / math.log(theta) * dim / 2
                       for turns in (scaling["beta_fast"], scaling["beta_slow"]))
        first, last = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
        stretched = np.clip((pair - first) / max(last - first, 0.001), 0, 1)
    return frequency * (1 - stretched) + frequency / scaling["factor"] * stretched


def rotate(x, config):
    """Rotary positions of x [B, heads, S, D]. The channels that turn are the first rotary_dim; of
    them channel i of the first half and channel i of the second form pair i. YaRN also lengthens
    them."""
    frequency, scaling, length = rope_frequencies(config), config["rope_scaling"], 1
    if scaling["type"] == "yarn":
        length = scaling["attention_factor"] or 0.1 * math.log(scaling["factor"]) + 1
    angle = np.outer(np.arange(x.shape[-2]), frequency)
    cos, sin = length * np.cos(angle), length * np.sin(angle)
    first, second, rest = np.split(x, [len(frequency), 2 * len(frequency)], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def within_groups(router, scores):
    """scores [T, E], and -inf outside the groups_per_token best groups of neighbours: those of the
    greatest score (DeepSeek-V2), or with sigmoid of the greatest sum of two (DeepSeek-V3)."""
    groups = np.sort(scores.reshape(len(scores), router["num_groups"], -1), axis=-1)
    best = groups[..., -(2 if router["score"] == "sigmoid" else 1):].sum(axis=-1)
    rank = np.argsort(np.argsort(-best, axis=-1, kind="stable"), axis=-1)
    kept = np.repeat(rank < router["groups_per_token"], groups.shape[-1], axis=-1)
    return np.where(kept, scores, -np.inf)


def choose_experts(router, scores, bias):
    """The k experts with the greatest score + bias of scores [T, E], best first; ties go to the
    lower index. The bias of loss-free balancing (Wang et al. 2024) does not change the weights."""
    allowed = within_groups(router, scores + bias)
    experts = np.argsort(-allowed, axis=-1, kind="stable")[:, : router["top_k"]]
    if router["force_balanced"]:  # for benchmarks only: in turn, each far from the one before it
        num_experts = scores.shape[1]
        stride = num_experts * 618 // 1000
        while math.gcd(stride, num_experts) != 1:
            stride += 1
        experts = np.arange(experts.size).reshape(experts.shape) * stride % num_experts
    weights = np.take_along_axis(scores, experts, axis=-1)
    if router["normalize_topk"]:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return experts, weights * router["routed_scaling_factor"]


def within_capacity(router, experts, weights, sequences, num_experts):
    """Whether each assignment [T, k] is kept. Per sequence an expert keeps at most capacity_factor
    times the mean number, rounded up. Assignments of the latest positions, or of the lowest weight
    (the later position if equal), are dropped: their expert adds nothing."""
    kept = np.ones(experts.shape, dtype=bool)
    if router["capacity_factor"] == 0:
        return kept
    length = len(experts) // sequences
    capacity = math.ceil(router["capacity_factor"] * (length * router["top_k"] / num_experts))
    for sequence, expert in np.ndindex(sequences, num_experts):
        rows = slice(sequence * length, (sequence + 1) * length)
        token, slot = np.nonzero(experts[rows] == expert)
        if router["drop_policy"] == "lowest_weight":
            order = np.argsort(-weights[rows][token, slot], kind="stable")
            token, slot = token[order], slot[order]
        kept[rows][token[capacity:], slot[capacity:]] = False
    return kept


def balance_loss(router, experts, probs, sequences):
    """E * sum_e f_e P_e (Fedus et al. 2021, eq. 4), where f_e is the share of the assignments
    [T, k] that expert e has before drops and P_e is its mean of probs [T, E]. It is computed per
    sequence and averaged, or once for the whole batch."""
    parts = 1 if router["balance_scope"] == "global_batch" else sequences
    num_experts = probs.shape[1]
    f = [np.bincount(e.ravel(), minlength=num_experts) / e.size for e in np.split(experts, parts)]
    return num_experts / parts * float(np.sum(f * probs.reshape(parts, -1, num_experts).mean(1)))


class ReferenceModel:
    """A decoder of any structure. `forward` sets `moe_layers` to one dict per MoE layer: aux_loss
    and z_loss without their coefficients, dropped, expert_counts [E]."""

    def __init__(self, config, weights, balancing_bias):
        self.config, self.weights, self.balancing_bias = config, weights, balancing_bias
        self.moe_layers = []

    def linear(self, x, name, bias=False):
        y = x @ self.weights[name + ".weight"].T
        return y + self.weights[name + ".bias"] if bias else y

    def norm(self, x, name):
        """rms_norm, or layer_norm (Ba et al. 2016), which subtracts the mean and adds a bias."""
        weight, eps = self.weights[name + ".weight"], self.config["norm_eps"]
        if self.config["norm"] == "rms_norm":
            return rms_norm(x, weight, eps)
        return rms_norm(x - x.mean(-1, keepdims=True), weight, eps) + self.weights[name + ".bias"]

    def qk_norm(self, q, k, name):
        return (rms_norm(t, self.weights[name + part], self.config["norm_eps"])
                for t, part in ((q, ".q_norm.weight"), (k, ".k_norm.weight")))

    def attention(self, x, name, visible):
        """Vaswani et al. 2017, eq. 1, with grouped queries (Ainslie et al. 2023).
          x        [B, S, H]
          visible  [B, S, S]: whether a query (row) sees a key (column)"""
        c = self.config
        q, k, v = (self.linear(x, name + part, c["bias"] != "none") for part in (".q", ".k", ".v"))
        if c["qk_norm"] == "projection":  # over all heads (OLMoE, arXiv 2409.02060)
            q, k = self.qk_norm(q, k, name)
        q, k, v = (t.reshape(*x.shape[:2], -1, c["head_dim"]).swapaxes(1, 2)
                   for t in (q, k, v))  # [B, heads, S, D]
        if c["qk_norm"] == "head":
            q, k = self.qk_norm(q, k, name)
        if c["position"] == "rope":
            q, k = rotate(q, c), rotate(k, c)
        # Consecutive query heads share a key head.
        k, v = (np.repeat(t, c["num_heads"] // c["num_kv_heads"], axis=1) for t in (k, v))
        scores = q @ k.swapaxes(2, 3) / math.sqrt(c["head_dim"])
        out = softmax(np.where(visible[:, None], scores, -np.inf)) @ v
        return self.linear(out.swapaxes(1, 2).reshape(*x.shape[:2], -1), name + ".out",
                           c["bias"] in ("attention", "all"))

    def feed_forward(self, x, name, bias=False):
        kind, up = self.config["activation"], self.linear(x, name + ".up", bias)
        gate = self.linear(x, name + ".gate", bias) if kind == "swiglu" else None
        return self.linear(activate(kind, up, gate), name + ".down", bias)

    def expert(self, x, name, e):
        """Routed expert e. With a gate, one matrix holds the rows of gate before those of up."""
        kind = self.config["activation"]
        if kind == "swiglu":
            gate, up = np.split(x @ self.weights[name + ".gate_up.weight"][e].T, 2, axis=-1)
        else:
            gate, up = None, x @ self.weights[name + ".up.weight"][e].T
        return activate(kind, up, gate) @ self.weights[name + ".down.weight"][e].T

    def route(self, x, name, sequences):
        """Routes the full width of x [T, H]. Returns experts, weights and kept, each [T, k]."""
        router = self.config["router"]
        logits = self.linear(x, name + ".router")
        scores = {"softmax": softmax, "sigmoid": sigmoid}[router["score"]](logits)
        bias = self.balancing_bias.get(f"moe_layers.{len(self.moe_layers)}", 0.0)
        experts, weights = choose_experts(router, scores, bias)
        kept = within_capacity(router, experts, weights, sequences, logits.shape[1])
        probs = scores / scores.sum(axis=-1, keepdims=True)  # DeepSeek-V3, eq. 18
        self.moe_layers.append({
            "aux_loss": balance_loss(router, experts, probs, sequences),
            "z_loss": float((log_sum_exp(logits) ** 2).mean()),
            "dropped": int((~kept).sum()),
            "expert_counts": np.bincount(experts.ravel(), minlength=logits.shape[1])})
        return experts, weights, kept

    def moe(self, x, name):
        """The weighted sum of the chosen experts, plus the shared ones (Dai et al. 2024). BigMac
        (arXiv 2502.16927, eq. 2) descends to a narrow width before the experts and ascends after
        their sum; its router and its shared experts read the full width."""
        rows, bigmac = x.reshape(-1, x.shape[-1]), self.config["structure"] == "bigmac"
        experts, weights, kept = self.route(rows, name, len(x))
        sent = self.linear(rows, name + ".descend") if bigmac else rows
        summed = np.zeros_like(sent)
        for e in range(self.config["num_experts"]):
            token, slot = np.nonzero((experts == e) & kept)
            y = self.expert(sent[token], name + ".experts", e)
            summed[token] += weights[token, slot][:, None] * y
        y = self.linear(summed, name + ".ascend") if bigmac else summed
        if self.config["num_shared_experts"] > 0:  # computed as one of their total width
            shared = self.feed_forward(rows, name + ".shared")
            if self.config["shared_expert_gate"]:  # Qwen1.5-MoE
                shared = shared * sigmoid(self.linear(rows, name + ".shared_gate"))
            y = y + shared
        return y.reshape(x.shape)

    def forward(self, tokens, document_start=None):
        """Logits [B, S, V].
          tokens          [B, S]
          document_start  [B, S]: first position of the token's document; None: one document"""
        c, self.moe_layers = self.config, []
        position = np.arange(tokens.shape[1])
        start = np.zeros_like(tokens) if document_start is None else document_start
        visible = (position <= position[:, None]) & (position >= start[..., None])
        x = self.weights["embedding.weight"][tokens]
        if c["position"] == "learned":
            x = x + self.weights["positions.weight"][position]
        for layer in range(c["num_layers"]):
            name = f"layers.{layer}"
            x = x + self.attention(self.norm(x, name + ".norm1"), name + ".attention", visible)
            normed = self.norm(x, name + ".norm2")
            if c["structure"] == "dense" or layer < c["first_dense_layers"]:
                x = x + self.feed_forward(normed, name + ".feed_forward", c["bias"] == "all")
            else:
                x = x + self.moe(normed, name + ".moe")
        return self.linear(self.norm(x, "norm"), "embedding" if c["tie_embeddings"] else "head")


def cross_entropy(logits, targets):
    """Mean in nats over the targets that are not -1."""
    counted = targets >= 0
    of_target = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return float((log_sum_exp(logits)[..., 0] - of_target)[counted].mean())
