#!/usr/bin/env python3
"""Makes a Hugging Face folder of the GGUF file of SmolLM2-135M-Instruct, or asks the model there:

    scripts/smollm2_folder.py SmolLM2-135M-Instruct.Q4_1.gguf FOLDER
    scripts/smollm2_folder.py --ask FOLDER
"""

import argparse
import json
import pathlib
import tempfile

import endings
from endings import Unusable

# The names of llama.cpp and those of transformers, within a block.
IN_BLOCK = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
CONTROL = 3  # the type of tokens such as <|im_end|> in a GGUF file
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def name_of(name):
    """blk.3.attn_q.weight to model.layers.3.self_attn.q_proj.weight."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, block, part, kind = name.split(".") if name.count(".") == 3 else (name, "", "", "")
    if part not in IN_BLOCK:
        raise Unusable(f"the GGUF file has a tensor {name}: it is another model than expected")
    return f"model.layers.{block}.{IN_BLOCK[part]}.{kind}"


def by_halves(weight, heads):
    """llama.cpp turns adjacent rows of a head as a pair, and its converter has reordered q and k for
    that; transformers turns row i of the first half with row i of the second."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_weights(reader, config):
    """f32 tensors by their names in transformers; the head is tied."""
    import numpy as np
    from gguf.quants import dequantize

    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name:
            weight = by_halves(weight, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            weight = by_halves(weight, config["num_key_value_heads"])
        weights[name_of(tensor.name)] = np.ascontiguousarray(weight)
    return weights


def model_config(field):
    heads, rope_theta = field("llama.attention.head_count"), field("llama.rope.freq_base")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": field("llama.embedding_length") // heads,
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
        "torch_dtype": "float32",
        "use_cache": True,
    }


def tokenizer_json(tokens, special, merges):
    """Byte-level BPE: each digit by itself, then GPT-2's words. llama.cpp calls this `smollm`."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": tokens[token], "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True} for token in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {text: token for token, text in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in merges]},
    }


def tokenizer_config(field, tokens):
    texts = {f"{role}_token": tokens[field(f"tokenizer.ggml.{key}_token_id")]
             for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"),
                               ("pad", "padding"))}
    return {**texts,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": field("llama.context_length"),
            "chat_template": field("tokenizer.chat_template")}


def write_folder(gguf_file, out):
    """Writes everything to a folder beside FOLDER, which gets its name when it is whole."""
    import gguf
    from safetensors.numpy import save_file

    if out.exists():
        raise Unusable(f"{out} exists already; move it away, or name another folder")
    try:
        reader = gguf.GGUFReader(gguf_file)
    except (ValueError, IndexError, KeyError) as error:  # what its arrays and tables say
        raise Unusable(f"{gguf_file} is torn or is no GGUF file ({error}); "
                       "scripts/fetch_smollm2.sh fetches one") from error

    def field(name):
        if name not in reader.fields:
            raise Unusable(f"{gguf_file} has no {name}: it is another model than expected")
        return reader.fields[name].contents()

    if field("general.architecture") != "llama" or field("tokenizer.ggml.pre") != "smollm":
        raise Unusable(f"{gguf_file} is no SmolLM2 model")
    tokens = field("tokenizer.ggml.tokens")
    special = [token for token, kind in enumerate(field("tokenizer.ggml.token_type"))
               if kind == CONTROL]
    config = model_config(field)
    files = {
        "config.json": config,
        "generation_config.json": {key: config[key] for key in (
            "bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": tokenizer_json(tokens, special, field("tokenizer.ggml.merges")),
        "tokenizer_config.json": tokenizer_config(field, tokens)}
    endings.make_folder(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made = pathlib.Path(scratch) / out.name
        made.mkdir()
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (made / name).write_text(text + "\n", encoding="utf-8")
        save_file(read_weights(reader, config), made / "model.safetensors", {"format": "pt"})
        made.rename(out)
    print(f"wrote {out}: {len(tokens)} tokens, {len(reader.tensors)} tensors")


def ask(folder):
    """A wrong order of rows or a wrong token gives nonsense instead of the answer."""
    if not (folder / "config.json").is_file():
        raise Unusable(f"{folder} holds no model; scripts/fetch_smollm2.sh makes runs/smollm2_hf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}],
                                           add_generation_prompt=True, return_tensors="pt",
                                           return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
    answer = tokenizer.decode(tokens[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{QUESTION}\n{answer.strip()}")
    if ANSWER not in answer:
        raise Unusable(f"{folder} answers nonsense; remove the folder, and make it again")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ask", action="store_true", help="ask the model of FOLDER a question")
    parser.add_argument("paths", nargs="+", type=pathlib.Path, metavar="GGUF FOLDER")
    arguments = parser.parse_args()
    if len(arguments.paths) != (1 if arguments.ask else 2):
        parser.error("give a GGUF file and the folder to make, or --ask and a folder")
    if arguments.ask:
        ask(arguments.paths[0])
    else:
        write_folder(*arguments.paths)


if __name__ == "__main__":
    endings.run(main)
