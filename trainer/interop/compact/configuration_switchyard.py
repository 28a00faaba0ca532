"""The configuration of a Switchyard model for `transformers` 4.57 and later."""

from transformers import PretrainedConfig


def of_model(key):
    """The standard name of a value that the section `model` holds."""
    return property(lambda self: self.model[key],
                    lambda self, value: self.model.update({key: value}))


class SwitchyardConfig(PretrainedConfig):
    """
    model          the section `model` of the experiment that trained the weights, with every value
    document_mask  whether a token sees only the tokens behind the last end-of-document token
    eos_token_id   the end-of-document token
    """

    model_type = "switchyard"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size = of_model("vocab_size")
    max_position_embeddings = of_model("seq_len")
    hidden_size = of_model("hidden")
    intermediate_size = of_model("ffn_hidden")
    num_hidden_layers = of_model("num_layers")
    num_attention_heads = of_model("num_heads")
    num_key_value_heads = of_model("num_kv_heads")
    head_dim = of_model("head_dim")
    initializer_range = of_model("init_std")

    def __init__(self, model=None, document_mask=False, eos_token_id=None, use_cache=True,
                 **kwargs):
        self.model = dict(model or {})
        self.document_mask = document_mask
        self.use_cache = use_cache
        router = self.model.get("router", {})
        if router.get("capacity_factor") or router.get("force_balanced"):
            raise ValueError("router.capacity_factor and router.force_balanced are for training: "
                             "they choose a token's experts by other tokens of its sequence")
        kwargs["tie_word_embeddings"] = self.model.get("tie_embeddings", False)
        super().__init__(eos_token_id=eos_token_id, **kwargs)
        self.eos_token_id = eos_token_id
