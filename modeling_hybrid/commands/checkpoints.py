"""A checkpoint -> its model and image processor, and what they say about an image."""

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .options import CheckpointOptions, ComputeOptions, say
from .processes import local_rank, rank


if TYPE_CHECKING:
    import torch


def resolve(options: CheckpointOptions) -> str:
    """
    Folder or id of the checkpoint; a run folder stands for its best one.

    Raises:
        FileNotFoundError: a folder without a checkpoint.
        NotADirectoryError: a file.
    """
    folder = options.checkpoint
    if os.path.isfile(folder):
        raise NotADirectoryError(f"{folder} is a file; expected the folder of a checkpoint or of a run.")
    if not os.path.isdir(folder):
        return folder
    for found in (folder, os.path.join(folder, "model")):
        if os.path.isfile(os.path.join(found, "config.json")):
            return found
    raise FileNotFoundError(f"{folder} is no checkpoint: it holds no config.json, nor does a folder model/ in it.")


def load(checkpoint: CheckpointOptions, compute: ComputeOptions):
    """
    Model and image processor. The model is that of the detector, which does all that the others do; what a checkpoint
    lacks for a verb is found out by that verb.

    Raises:
        ValueError: a checkpoint of another kind of model, damaged files, or a device that is not there.
        OSError: no such checkpoint, no connection, or weights that are not safetensors.
    """
    path = resolve(checkpoint)
    if rank() == 0:
        say(f"Loading torch, and {checkpoint.checkpoint} in {compute.dtype.value} ...")
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM

    from modeling_hybrid import HybridConfig, HybridForOutOfDistributionDetection

    try:
        device = torch.device(compute.device) if compute.device else _best_device(torch)
    except RuntimeError as error:
        raise ValueError(f"--device {compute.device}: {error}") from error
    source: dict[str, Any] = {"trust_remote_code": checkpoint.trust_remote_code}
    if checkpoint.revision:
        source["revision"] = checkpoint.revision
    model_class = HybridForOutOfDistributionDetection
    try:
        with damage_named(checkpoint):
            if checkpoint.trust_remote_code:
                config = AutoConfig.from_pretrained(path, **source)
                is_detector = "Detection" in config.auto_map.get("AutoModel", "")
                model_class = AutoModel if is_detector else AutoModelForCausalLM
                weights = source
            else:
                require_ours(path, checkpoint, HybridConfig)
                weights = {key: value for key, value in source.items() if key != "trust_remote_code"}
            model = model_class.from_pretrained(
                path, dtype=getattr(torch, compute.dtype), use_safetensors=True, **weights
            )
            processor = AutoImageProcessor.from_pretrained(path, **source)
    except OSError as error:
        where = "" if os.path.isdir(path) else f"There is no folder {path} here, and the Hub has none to give. "
        raise OSError(f"{where}{error}") from error
    try:
        return model.eval().to(device), processor
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {compute.device}: {error}") from error


@contextmanager
def damage_named(checkpoint: CheckpointOptions) -> Generator[None]:
    """
    Raises:
        ValueError: files that were found to be cut off, or not to fit each other.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from yaml import YAMLError

    try:
        yield
    except (RuntimeError, SafetensorError, StrictDataclassError, YAMLError) as error:
        raise ValueError(
            f"The files of {checkpoint.checkpoint} are damaged, or do not fit each other: {error}"
        ) from error


def _best_device(torch) -> "torch.device":
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    return torch.device(device.type, local_rank() % torch.accelerator.device_count())


def require_ours(path: str, checkpoint: CheckpointOptions, config_class) -> dict:
    """
    The fields of the configuration.

    Raises:
        ValueError: a checkpoint of another kind of model.
    """
    fields, _ = config_class.get_config_dict(path, revision=checkpoint.revision)
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != config_class.model_type:
        raise ValueError(
            f"{checkpoint.checkpoint} is a checkpoint of model_type {kind!r}, expected {config_class.model_type!r}. If "
            "its own code makes it one, read that code, and let it run by --trust-remote-code."
        )
    return fields


def fingerprint(model) -> str:
    """Which weights these are, whatever their folder is called."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def has_likelihood(model) -> bool:
    return model.config.has_likelihood and not model.is_untrained


def has_detector(model) -> bool:
    """Whether it was fitted, and can say how strange an image is."""
    return hasattr(model, "strangeness") and bool(model.strangeness.is_fitted)


@dataclass
class Measured:
    """
    Of B images, on the CPU in fp32.

    Args:
        features: (B, P) pooled features.
        regions: (B, Q) means of the encoder's states over regions, which detectors look at; `None` without a detector.
        nll: (B,) negative log-likelihoods in nats; `None` where the model has none.
        bits_per_dim: (B,) the same in bits per dimension.
        strangeness: (B,) score of a fitted detector; `None` without one.
    """

    features: "torch.Tensor"
    regions: "torch.Tensor | None"
    nll: "torch.Tensor | None"
    bits_per_dim: "torch.Tensor | None"
    strangeness: "torch.Tensor | None"


def measure(model, pixel_values: "torch.Tensor") -> Measured:
    """All that a model says about images (B, C, H, W), in one pass."""
    import torch

    with torch.inference_mode():
        found = measured(model, pixel_values.to(model.device), has_likelihood(model), has_detector(model))
    return Measured(*(None if values is None else values.float().cpu() for values in found))


def measured(model, pixel_values: "torch.Tensor", with_likelihood: bool, with_detector: bool) -> tuple:
    """The fields of [`Measured`] in the same order, on the device and in the precision of the model."""
    import torch

    from modeling_hybrid.likelihood import bits_per_dim
    from modeling_hybrid.patch_codes import pixels_to_codes

    codes = pixels_to_codes(pixel_values, model.config)
    states, nll = model.measure(codes, torch.zeros_like(codes[:, 0, 0]), with_likelihood)
    regions = model.average(states) if hasattr(model, "average") else None
    strangeness = model.strangeness(regions, nll)["combined"] if with_detector else None
    bits = None if nll is None else bits_per_dim(nll, model.config)
    return model.encoder.pooler(states), regions, nll, bits, strangeness


def nll_maps(model, pixel_values: "torch.Tensor") -> "torch.Tensor":
    """
    Negative log-likelihoods of the patches (B, S) of images (B, C, H, W) in nats, on the CPU in fp32; those of an image
    add up to its own.

    Raises:
        ValueError: a model without a likelihood.
    """
    import torch

    with torch.inference_mode():
        return model.nll_map(pixel_values.to(model.device)).float().cpu()
