#!/usr/bin/python3
"""Prints what the reference model makes of a checkpoint's weights and some tokens:

    scripts/reference_forward.py RUN_OR_CHECKPOINT TOKEN TOKEN ...
"""

import argparse
import pathlib
import re

import endings
from endings import Unusable

try:
    import h5py
    import numpy as np
    import yaml
    from reference_model import ReferenceModel, cross_entropy
except ImportError as missing:
    endings.without(missing)

# In YAML 1.2, and for the program, 1e-05 is a number; without this PyYAML reads it as text.
yaml.SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"-?\d+e[-+]\d+$"), list("-0123456789"))


def load_checkpoint(path):
    """(the `model` section of the configuration, weights by name, balancing biases by MoE layer) of
    a checkpoint's folder, or of the newest checkpoint in a run's folder. See docs/formats.md."""
    folder = pathlib.Path(path)
    if not (folder / "manifest.json").exists():
        folder = folder / "checkpoints" / "latest"
    remedy = "give a checkpoint that `switchyard inspect --verify` calls intact, or its run"
    manifest = endings.read_json(folder / "manifest.json", remedy)
    tensors = {"weights": {}, "balancing_bias": {}}
    try:
        with h5py.File(folder / "model.h5") as file:
            for kind in tensors.keys() & file.keys():
                file[kind].visititems(lambda name, item: tensors[kind].update(
                    {name: item[:].astype(float)}) if isinstance(item, h5py.Dataset) else None)
        config = yaml.safe_load(str(manifest["state"]["config"]))["model"]
        config["vocab_size"], config["seq_len"]  # fails where it is no model's configuration
        return config, *tensors.values()
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise Unusable(f"{folder} is no whole checkpoint ({error}); {remedy}") from error


def check_tokens(tokens, config):
    """Refuses a sequence that the model cannot read."""
    if len(tokens) < 2:
        raise Unusable("one token has no next one; give at least two")
    for token in tokens:
        if not 0 <= token < config["vocab_size"]:
            raise Unusable(f"token {token} is outside the vocabulary of {config['vocab_size']}")
    if len(tokens) > config["seq_len"]:
        raise Unusable(f"{len(tokens)} tokens exceed the context of {config['seq_len']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="checkpoint folder, or run folder (newest checkpoint)")
    parser.add_argument("tokens", type=int, nargs="+", help="one sequence of at least two tokens")
    arguments = parser.parse_args()
    model = ReferenceModel(*load_checkpoint(arguments.checkpoint))
    check_tokens(arguments.tokens, model.config)
    tokens = np.array([arguments.tokens])
    with np.errstate(all="ignore"):  # what is not finite is reported below
        try:
            logits = model.forward(tokens)
        except KeyError as error:
            raise Unusable(f"{arguments.checkpoint} has no tensor {error}") from error
    if not np.isfinite(logits).all():
        raise Unusable(f"{arguments.checkpoint}: the logits are not finite: the run diverged, or "
                       "its weights are damaged")
    for i, layer in enumerate(model.moe_layers):
        print(f"MoE layer {i}:", {key: layer[key] for key in ("aux_loss", "z_loss", "dropped")})
    print(f"loss of the tokens after the first {cross_entropy(logits[:, :-1], tokens[:, 1:]):.6f}")
    print(f"likeliest next token {logits[0, -1].argmax()}")


if __name__ == "__main__":
    endings.run(main)
