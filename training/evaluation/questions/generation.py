"""
Pictures that the model draws: samples and completions to look at, and how samples compare with images of the data.

Shape letters: N images, C channels, H height, W width, P width of a feature.
"""

import numpy as np
import torch
from sklearn.metrics import pairwise_distances_argmin_min

from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.patch_codes import codes_to_levels

from ...reports import pictures
from ..judge import feature_space
from ..likeness import NUM_NEIGHBOURS, likeness
from ..subject import Findings, Subject, as_pixels


def evaluate(subject: Subject) -> Findings:
    """
    Pictures, and what the samples are worth ([`compare`], [`memorisation`]); nothing without a likelihood to sample
    from.
    """
    if not subject.has_likelihood:
        return Findings()
    settings = subject.config.evaluation
    # As many of each kind, so that the values of samples and of training images have the same bias.
    available = min(len(subject.levels["train"]), len(subject.levels["test"]))
    num_scored = min(subject.affordable(settings.num_scored_samples), available)
    generator = torch.Generator(subject.model.device).manual_seed(subject.config.seed)
    samples = sample(subject, max(settings.num_samples, num_scored), generator)
    draw(subject, samples[: settings.num_samples], generator)
    if num_scored <= NUM_NEIGHBOURS:
        return Findings()
    results = compare(subject, samples[:num_scored]) | memorisation(subject, samples[:num_scored])
    return Findings(results, num_images={"samples": num_scored})


def sample(subject: Subject, num_samples: int, generator: torch.Generator) -> torch.Tensor:
    """Levels (N, C, H, W) that the model draws from nothing."""
    model, batch_size = subject.model, subject.batch_size
    sizes = [min(batch_size, num_samples - start) for start in range(0, num_samples, batch_size)]
    codes = torch.cat([model.generate(batch_size=size, generator=generator) for size in sizes])
    return codes_to_levels(codes, model.config).cpu()


def draw(subject: Subject, samples: torch.Tensor, generator: torch.Generator) -> None:
    """`samples.png`, and `completions.png` of the lower halves of twelve test images."""
    model, image_processor = subject.model, subject.image_processor
    images = subject.images(samples)
    pictures.sheet(images, subject.pictures / "samples.png", num_columns=round(len(images) ** 0.5))

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
    rows = pictures.completion_images(originals, completions, given_rows)
    pictures.sheet(rows, subject.pictures / "completions.png", num_columns=2 * (len(completions) + 2))


def compare(subject: Subject, samples: torch.Tensor) -> dict[str, str | int | float]:
    """
    [`likeness`] of samples (N, C, H, W) to N test images, and that of N training images (prefix `train_`), which a
    perfect model would reach; with the space of features and the number N, and [`Space.legibility`] of samples and of
    test images (prefix `test_`).
    """
    space = feature_space(subject)
    test = subject.splits.test.all_levels(len(samples))
    train = subject.splits.reference.all_levels(len(samples))
    of_test, of_samples, of_train = map(space.features, (test, samples, train))
    results = space.facts | {"num_scored_samples": len(samples)} | likeness(of_test, of_samples)
    results |= {f"train_{key}": value for key, value in likeness(of_test, of_train).items()}
    return results | space.legibility(samples) | space.legibility(test, "test_")


def memorisation(subject: Subject, samples: torch.Tensor) -> dict[str, float]:
    """
    Mean distance (L2 of pixels in [0, 1]) of samples (N, C, H, W) to the nearest training image, and the share of them
    that are copies of one; the same of test images (prefix `test_`). The closest samples are drawn in `neighbours.png`.
    """
    train, top = subject.pixels["train"], subject.model.config.num_levels - 1

    def report(distances: np.ndarray) -> dict[str, float]:
        # In levels, which are whole numbers, nothing but a copy is nearer than 1.
        return {
            "nearest_training_distance": float(distances.mean()) / top,
            "copied_share": float(np.mean(distances < 0.5)),
        }

    nearest, distances = pairwise_distances_argmin_min(as_pixels(samples), train)
    closest = distances.argsort(kind="stable")[:32]
    pairs = torch.stack([samples[closest], subject.levels["train"][nearest[closest]]], dim=1).flatten(0, 1)
    pictures.sheet(subject.images(pairs), subject.pictures / "neighbours.png", num_columns=8)
    _, test_distances = pairwise_distances_argmin_min(subject.pixels["test"], train)
    return report(distances) | {f"test_{key}": value for key, value in report(test_distances).items()}
