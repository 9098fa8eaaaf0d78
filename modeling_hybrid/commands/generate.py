"""`hybrid generate`, `hybrid complete` and `hybrid vary`: new images, the rest of given ones, and others like them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .batches import Reader
from .checkpoints import load
from .growth import InTerminal, Rows, can_be_watched
from .options import CheckpointOptions, ComputeOptions, ImageOptions, say, verb
from .pictures import file_name, save, sheet
from .progress import Progress
from .results import require_writable
from .sources import Sources


@dataclass
class SamplingOptions:
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A sheet of all (FILE.png), or a folder of single PNG files.")
    ]
    temperature: Annotated[float, typer.Option(min=1e-3, help="Below 1, likelier images.")] = 1.0
    top_p: Annotated[float, typer.Option(min=1e-3, max=1, help="Draw from the likeliest levels of this share.")] = 1.0
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.")] = 0

    def arguments(self, model) -> dict:
        """Of `model.generate`."""
        import torch

        generator = torch.Generator(model.device).manual_seed(self.seed)
        return {"temperature": self.temperature, "top_p": self.top_p, "generator": generator}

    @property
    def is_sheet(self) -> bool:
        return self.output.suffix.lower() == ".png"

    def require_writable(self) -> None:
        require_writable(self.output if self.is_sheet else self.output / file_name(0, ""))


@verb
def generate(
    checkpoint: CheckpointOptions,
    compute: ComputeOptions,
    sampling: SamplingOptions,
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="How many to draw.")] = 16,
):
    """Draw new images."""
    sampling.require_writable()
    model, processor = load(checkpoint, compute)
    model.require_decoder()
    arguments, images = sampling.arguments(model), []
    with Progress(num_images) as progress:
        while len(images) < num_images:
            size = min(compute.batch_size, num_images - len(images))
            images += processor.codes_to_images(model.generate(batch_size=size, **arguments))
            progress.update(size)
    if sampling.is_sheet:
        save(sheet(images), sampling.output)
    else:
        for i, image in enumerate(images):
            save(image, sampling.output / file_name(i, "sample"))
    say(f"{num_images} images drawn: {sampling.output}")


@verb
def complete(
    checkpoint: CheckpointOptions,
    images: ImageOptions,
    compute: ComputeOptions,
    sampling: SamplingOptions,
    given: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each image that is kept, from the top; whole patches.")
    ] = 0.5,
    num_completions: Annotated[int, typer.Option("--num-completions", "-n", min=1, help="Of each image.")] = 4,
):
    """
    Complete images from their upper part: a row of the sheet is the image, then its completions. A terminal shows the
    first of them as they grow.
    """
    sources = Sources(images)
    sampling.require_writable()
    model, processor = load(checkpoint, compute)
    model.require_decoder()
    config, arguments = model.config, sampling.arguments(model)
    num_given_rows = round(given * config.image_size / config.patch_size) * config.patch_size
    watched = can_be_watched()

    def draw(pixel_values):
        if watched:
            arguments["streamer"] = Rows(processor, config, InTerminal())
        return model.generate(pixel_values, num_given_rows, num_return_sequences=num_completions, **arguments)

    num_done = _draw_rows(
        draw, num_completions, sources, Reader(processor, images, compute.batch_size), sampling, watched
    )
    say(f"{num_done} images completed: {sampling.output}")


@verb
def vary(
    checkpoint: CheckpointOptions,
    images: ImageOptions,
    compute: ComputeOptions,
    sampling: SamplingOptions,
    guidance: Annotated[
        float, typer.Option(min=1, help="Above 1, closer to what the features say, and less varied.")
    ] = 1.0,
    num_variations: Annotated[int, typer.Option("--num-variations", "-n", min=1, help="Of each image.")] = 8,
):
    """
    Draw images from the features of given ones, and from nothing else of them: a row of the sheet is the image, then
    its variations. For checkpoints whose decoder is told features.
    """
    sources = Sources(images)
    sampling.require_writable()
    model, processor = load(checkpoint, compute)
    model.require_condition()
    arguments = sampling.arguments(model) | {"num_return_sequences": num_variations, "guidance_scale": guidance}
    reader = Reader(processor, images, compute.batch_size)
    num_done = _draw_rows(partial(model.generate, **arguments), num_variations, sources, reader, sampling)
    say(f"{num_done} images varied: {sampling.output}")


def _draw_rows(
    draw: Callable, num_drawn: int, sources: Sources, reader: Reader, sampling: SamplingOptions, watched: bool = False
) -> int:
    """
    Draw a row for each image: the image, then `num_drawn` of it. How many images there were.

    Args:
        draw: pixel_values (B, C, H, W) -> codes (B * num_drawn, S, K).
        watched: whether the images are shown on the terminal, which then has no room for a bar.
    """
    tiles, num_done = [], 0
    with Progress(sources.count(), disable=watched) as progress:
        for batch in reader.batches(sources, progress):
            drawn = reader.processor.codes_to_images(draw(batch.pixel_values))
            for i, (item, image) in enumerate(
                zip(batch.items, reader.processor.pixels_to_images(batch.pixel_values), strict=True)
            ):
                row = [image, *drawn[i * num_drawn : (i + 1) * num_drawn]]
                if sampling.is_sheet:
                    tiles += row
                else:
                    path = sampling.output / file_name(num_done + i, item.name)
                    save(sheet(row, num_columns=len(row), height=96), path)
            num_done += len(batch.items)
    reader.unreadable.check(at_end=True)
    if tiles:
        save(sheet(tiles, num_columns=1 + num_drawn, height=96 * num_done), sampling.output)
    return num_done
