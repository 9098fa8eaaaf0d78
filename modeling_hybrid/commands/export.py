"""`hybrid export`: a checkpoint -> one file that runs without it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import has_detector, has_likelihood, load, resolve
from .detect import Threshold
from .options import CheckpointOptions, ComputeOptions, require, say, verb
from .results import written_whole


# Of an output in its own unit; where that is above 1, a share of it, as fp32 keeps so many digits and no decimals.
TOLERANCE = 1e-4


class Part(StrEnum):
    features = "features"
    likelihood = "likelihood"
    detector = "detector"


@verb
def export(
    checkpoint: CheckpointOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="FILE.onnx, FILE.pt2 of torch.export, or a folder for model.onnx.")
    ],
    part: Annotated[
        list[Part] | None, typer.Option(help="What the file gives, once for each; all that there is if unset.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="ONNX with matrix products in int8: smaller, and close instead of equal.")
    ] = False,
):
    """
    Write a checkpoint as one file, which onnxruntime or torch run for any number of images. It is kept only if it says
    what the checkpoint says.

    Input: pixel_values (batch, channels, height, width), float32: bytes of images, grey or RGB and of the model's size,
    as byte / 127.5 - 1; the file rounds them to the model's levels.

    Outputs: features (batch, width); log_likelihood in nats, and bits_per_dim; of a fitted detector score, p_value, and
    is_strange by its threshold, which the file holds.

    Metadata: image_size, num_channels, num_levels, image_mean and image_std (of bytes), resample, threshold, precision,
    and weights, the fingerprint that hybrid embed notes.
    """
    if output.is_dir():
        output = output / "model.onnx"
    if output.suffix not in ((".onnx",) if int8 else (".onnx", ".pt2")):
        raise ValueError(f"--output {output} must end in .onnx{'' if int8 else ' or .pt2'}, or be a folder.")
    if output.suffix == ".onnx":
        for module in ("onnxscript", "onnxruntime"):
            require(module, "export")
    model, processor = load(checkpoint, ComputeOptions(device="cpu"))
    there = {Part.features: True, Part.likelihood: has_likelihood(model), Part.detector: has_detector(model)}
    parts = part or [one for one in Part if there[one]]
    for one in parts:
        if not there[one]:
            raise ValueError(f"{checkpoint.checkpoint} has no {one}{' that was fitted' * (one == Part.detector)}.")
    threshold = Threshold.read(resolve(checkpoint), checkpoint.revision) if Part.detector in parts else None
    say(f"Exporting {', '.join(parts)} ...")
    from PIL.Image import Resampling

    from .graph import FORMATS, Graph, compare

    graph = Graph(model, parts, there[Part.likelihood], threshold, Resampling(processor.resample).name.lower())
    with written_whole(output) as partial:
        partial.touch()  # what cannot be written fails before the work
        run = FORMATS[output.suffix](graph, partial, int8)
        found = compare(run, model, threshold)
        if not int8 and not all(one.difference <= TOLERANCE for one in found):
            told = ", ".join(f"{one.name} by {one.difference:.1e}" for one in found)
            raise ValueError(f"{output} would differ from the checkpoint by more than {TOLERANCE}: {told}.")
    for one in found:
        typer.echo(
            f"{one.name} {one.shape}: "
            + (f"relative error {one.relative_error:.2%}" if int8 else f"largest difference {one.difference:.1e}")
        )
    say(f"{output}: {output.stat().st_size:,} bytes, compared with {checkpoint.checkpoint} on random images.")
