"""What an exported file computes, how it is written and run, and whether it says what the checkpoint says."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from modeling_hybrid.levels import nearest_levels
from modeling_hybrid.version import __version__

from .checkpoints import fingerprint, measure, measured
from .detect import Threshold
from .export import Part
from .options import require


# pixel_values (B, C, H, W) -> outputs (B, ...) by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]

INPUT = "pixel_values"
# What protobuf can hold.
_MAX_BYTES = 2**31
# From the highest power down.
_ERFC = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)
# Images at a time in a comparison; none of them is the number that the file is traced with.
_BATCH_SIZES = (1, 5)


class Graph(nn.Module):
    """
    pixel_values (B, C, H, W) -> outputs (B, ...) by name.

    Args:
        model: in fp32, on the CPU.
        parts: those that the file is to give, all of which the model has.
        with_likelihood: whether the model has one; its detector then looks at it.
        threshold: of the detector, where that is a part.
        resample: how images come to the model's size, as Pillow calls it.
    """

    def __init__(self, model, parts: list[Part], with_likelihood: bool, threshold: Threshold | None, resample: str):
        super().__init__()
        self.model, self.parts, self.with_likelihood, self.resample = model, parts, with_likelihood, resample
        if threshold is not None:
            self.register_buffer("threshold", torch.tensor(threshold.threshold))
            self.register_buffer("scores", torch.tensor(threshold.scores))
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        has_detector = Part.detector in self.parts
        # What no output is made of does not reach the file.
        features, _, nll, bits, score = measured(self.model, pixel_values, self.with_likelihood, has_detector)
        outputs = {}
        if Part.features in self.parts:
            outputs |= {"features": features}
        if Part.likelihood in self.parts:
            outputs |= {"log_likelihood": -nll, "bits_per_dim": bits}
        if has_detector:
            num_as_high = (self.scores >= score[:, None]).sum(dim=1)
            p_value = (1 + num_as_high) / (1 + len(self.scores))
            outputs |= {"score": score, "p_value": p_value, "is_strange": score > self.threshold}
        return outputs

    def metadata(self, precision: str) -> dict[str, str]:
        """What a program needs to know to prepare images, and what the file was made of."""
        config = self.model.config
        found = {
            "image_size": config.image_size,
            "num_channels": config.num_channels,
            "num_levels": config.num_levels,
            "image_mean": 127.5,
            "image_std": 127.5,
            "resample": self.resample,
            "precision": precision,
            "weights": fingerprint(self.model),
            "modeling_hybrid": __version__,
        }
        if Part.detector in self.parts:
            found["threshold"] = float(self.threshold)
        return {key: str(value) for key, value in found.items()}

    def export(self) -> torch.export.ExportedProgram:
        """For any number of images."""
        config = self.model.config
        images = torch.zeros(3, config.num_channels, config.image_size, config.image_size)
        batch = {INPUT: {0: torch.export.Dim("batch")}}
        with torch.no_grad():
            return torch.export.export(self, (), {INPUT: images}, dynamic_shapes=batch, strict=False)


def log_ndtr(z: torch.Tensor) -> torch.Tensor:
    """
    Log of the normal distribution function, of operators that ONNX has; those of torch's own are NaN there far from 0.
    By an erfc with a relative error of 1.2e-7, whose log is a polynomial (Press et al., Numerical Recipes in C, 2nd
    edition, section 6.2, erfcc).
    """
    t = 1 / (1 + z.abs() * math.sqrt(0.125))
    polynomial = torch.zeros_like(z)
    for coefficient in _ERFC:
        polynomial = polynomial * t + coefficient
    log_tail = t.log() - z.square() / 2 + polynomial - math.log(2)
    return torch.where(z < 0, log_tail, torch.log1p(-log_tail.exp()))


def write_onnx(graph: Graph, path: Path, int8: bool) -> Run:
    """
    Raises:
        ValueError: more weights than a file can hold.
    """
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    if size >= _MAX_BYTES:
        raise ValueError(f"The weights are {size:,} bytes, an ONNX file holds {_MAX_BYTES:,}; export to FILE.pt2.")
    # torch speaks of torchvision, onnxruntime, as the root, of a step that is none of dynamic quantisation.
    for name in ("torch.onnx", None):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Of what the exporter would do in its turn, these go wrong there: it keeps cross_entropy, which fixes the batch.
    table = torch.export.default_decompositions()
    table[torch.ops.aten.special_log_ndtr.default] = log_ndtr
    exported = graph.export().run_decompositions(table)
    names = list(exported.call_spec.out_spec.context)
    program = torch.onnx.export(
        exported, dynamo=True, output_names=names, dynamic_shapes={INPUT: {0: "batch"}}, verbose=False
    )
    program.model.metadata_props.update(graph.metadata("int8" if int8 else "float32"))
    program.save(path, external_data=False)
    if int8:
        onnx, quantization = require("onnx"), require("onnxruntime.quantization")
        # The weights per row, and what they are multiplied with by its range in the batch.
        quantization.quantize_dynamic(onnx.load(path), path, op_types_to_quantize=["MatMul"], per_channel=True)
    session = require("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixel_values: dict(zip(names, session.run(names, {INPUT: pixel_values}), strict=True))


def write_pt2(graph: Graph, path: Path, int8: bool) -> Run:
    with open(path, "wb") as file:
        torch.export.save(graph.export(), file, extra_files={"metadata.json": json.dumps(graph.metadata("float32"))})
    with open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda pixel_values: {
        name: value.numpy() for name, value in module(pixel_values=torch.from_numpy(pixel_values)).items()
    }


FORMATS = {".onnx": write_onnx, ".pt2": write_pt2}


@dataclass
class Compared:
    """
    Args:
        name: of the output.
        shape: of the output, as text.
        difference: the largest one, as a share of the checkpoint's value where that is above 1.
        relative_error: norm of all differences, as a share of the norm of the checkpoint's values.
    """

    name: str
    shape: str
    difference: float
    relative_error: float


def compare(run: Run, model, threshold: Threshold | None) -> list[Compared]:
    """Each output of a file beside what the checkpoint says of the same images, some plain and some noisy."""
    images = _images(model.config, sum(_BATCH_SIZES))
    found = [run(batch.numpy()) for batch in images.split(_BATCH_SIZES)]
    found = {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}
    said = measure(model, images)
    expected = {"features": said.features, "bits_per_dim": said.bits_per_dim, "score": said.strangeness}
    if said.nll is not None:
        expected["log_likelihood"] = -said.nll
    if threshold is not None:
        # Of the file's own scores: one at the very threshold may be rounded to either side of it.
        scores = found["score"].tolist()
        expected["p_value"] = torch.tensor([threshold.p_value(score) for score in scores])
        expected["is_strange"] = torch.tensor([score > threshold.threshold for score in scores])
    compared = []
    for name, values in found.items():
        wanted = expected[name].double().numpy()
        difference = np.abs(values - wanted)
        shape = ", ".join(["batch", *map(str, values.shape[1:])])
        compared.append(
            Compared(
                name,
                f"({shape})",
                float((difference / np.maximum(1, np.abs(wanted))).max()),
                float(np.linalg.norm(difference) / max(np.linalg.norm(wanted), 1e-12)),
            )
        )
    return compared


def _images(config, num: int) -> torch.Tensor:
    """pixel_values (num, C, H, W) on the grid of levels: every other image is noise, those between are smooth."""
    random = torch.Generator().manual_seed(0)
    size, channels = config.image_size, config.num_channels
    noise = torch.rand(num, channels, size, size, generator=random)
    smooth = torch.rand(num, channels, 2, 2, generator=random)
    noise[1::2] = nn.functional.interpolate(smooth, size=(size, size), mode="bilinear")[1::2]
    return nearest_levels(2 * noise - 1, config.num_levels)
