"""Pictures that the model draws: samples, and completions of test images."""

import torch

from . import figures
from .embedding import levels_to_pixels
from .subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    if not subject.has_likelihood:
        return Findings()
    model, image_processor, num_samples = subject.model, subject.image_processor, subject.config.evaluation.num_samples
    generator = torch.Generator(model.device).manual_seed(subject.config.seed)
    images = image_processor.codes_to_images(model.generate(batch_size=num_samples, generator=generator))
    figures.sheet(images, subject.figures / "samples.png", num_columns=round(len(images) ** 0.5))

    patch_size = model.config.patch_size
    given_rows = model.config.image_size // 2 // patch_size * patch_size
    levels = subject.splits.test.all_levels(12)
    pixel_values = levels_to_pixels(levels, model.config.num_levels).to(model.device)
    completions = [
        image_processor.codes_to_images(
            model.generate(pixel_values=pixel_values, num_given_rows=given_rows, generator=generator)
        )
        for _ in range(4)
    ]
    originals = image_processor.pixels_to_images(pixel_values)
    rows = figures.completion_images(originals, completions, given_rows)
    figures.sheet(rows, subject.figures / "completions.png", num_columns=2 * (len(completions) + 2))
    return Findings()
