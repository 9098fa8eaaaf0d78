"""`hybrid info`: what a checkpoint is."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import damage_named, require_ours, resolve
from .detect import THRESHOLD_FILE
from .options import CheckpointOptions, printable, say, verb
from .results import read_json


@verb
def info(
    checkpoint: CheckpointOptions,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
):
    """Say what a checkpoint is: sizes, losses, data, and the figures of its card. Weights are not loaded."""
    path = resolve(checkpoint)
    say(f"Reading {checkpoint.checkpoint} ...")
    with damage_named(checkpoint):
        found = describe(path, checkpoint)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for name, one in value.items():
                typer.echo(f"  {printable(str(name))}: {printable(str(one))}")
        else:
            typer.echo(f"{key}: {printable(str(value))}")


def describe(path: str, checkpoint: CheckpointOptions) -> dict:
    """
    Raises:
        ValueError: a checkpoint of another kind of model.
    """
    from huggingface_hub import ModelCard
    from safetensors import safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    from modeling_hybrid import HybridConfig

    def file(name: str) -> str | None:
        return cached_file(
            path,
            name,
            revision=checkpoint.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=True,
        )

    fields = require_ours(path, checkpoint, HybridConfig)
    config = HybridConfig.from_dict(fields)
    index = file(SAFE_WEIGHTS_INDEX_NAME)
    shards = set(json.loads(Path(index).read_bytes())["weight_map"].values()) if index else {SAFE_WEIGHTS_NAME}
    parts: dict[str, int] = {}
    for weights in filter(None, map(file, sorted(shards))):
        with safe_open(weights, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = name.split(".")[0]
                parts[part] = parts.get(part, 0) + math.prod(tensors.get_slice(name).get_shape())
    card, threshold = file("README.md"), file(THRESHOLD_FILE)
    data = ModelCard.load(card, ignore_metadata_errors=True).data if card else None
    figures = (
        {
            f"{one.metric_name or one.metric_type} ({one.dataset_name})": one.metric_value
            for one in data.eval_results or []
        }
        if data
        else {}
    )
    return {
        "class": ", ".join(config.architectures or ["unknown"]),
        "image": f"{config.image_size} x {config.image_size} x {config.num_channels}, {config.num_levels} levels",
        "patches": f"{config.num_patches} of {config.patch_size} x {config.patch_size}",
        "layers": f"{config.num_encoder_layers} + {config.num_decoder_layers}, width {config.hidden_size}",
        "features": f"{config.pooled_size}, pooling {config.pooling}, attention {config.encoder_attention}",
        "likelihood": f"{config.code_distribution}, weight {config.generative_weight}"
        if config.has_likelihood
        else "none",
        "contrast": f"{config.objective['name']}, weight {config.contrastive_weight}"
        if config.has_contrast
        else "none",
        "numbers stored": parts,
        "threshold": read_json(Path(threshold), "threshold")["threshold"] if threshold else "none",
        "data": ", ".join(data.datasets or []) if data else "unknown: there is no card",
        "figures of the card": figures,
    }
