"""
Do the classes still show when images are corrupted? A linear probe on frozen features, beside the same on raw pixels.

Each probe is fitted twice: on clean images, and on these with an augmented copy of each, because a probe that has only
seen clean features may fail where the features have not. Corrupted images are only ever scored.

Shape letters: N images, C channels, H height, W width, P width of a feature, R corruptions, G severities.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from modeling_hybrid.levels import pixels_to_levels

from ...data.images import evenly
from ...data.views import Views
from ...metrics.mean_corruption_error.mean_corruption_error import mean_corruption_error
from ..corruptions import CORRUPTIONS, SEVERITIES
from ..probes import Labelled, fit_linear, is_correct
from ..subject import Findings, Subject, as_pixels


# What the names of values end in: nothing for a probe that was fitted on clean images.
AUGMENTED_PROBE = "_augmented_probe"


def evaluate(subject: Subject) -> Findings:
    """
    Accuracy under every corruption and severity, and the mean corruption error against pixels, over the corruptions
    that mislead these; nothing without labels.

    Of each test image: the share of corruptions and severities under which it is read right, NaN where it is not among
    the `num_out_of_distribution` that are tried (`max_subpixels`: fewer large ones).
    """
    if subject.labels is None:
        return Findings()
    num_tried = subject.affordable(subject.config.evaluation.num_out_of_distribution)
    tried = evenly(len(subject.levels["test"]), num_tried)
    readers = {"": lambda levels: subject.embed(levels).features, "pixel_": as_pixels}
    copies = augmented_copies(subject)
    results, correct = {}, {}
    for prefix, read in readers.items():
        train, validation, test = subject.labelled(prefix)
        doubled = Labelled(np.concatenate([train.features, read(copies)]), np.tile(train.labels, 2))
        probes = {"": subject.linear_probe(prefix), AUGMENTED_PROBE: fit_linear(doubled, validation)}
        results[f"{prefix}linear_accuracy{AUGMENTED_PROBE}"] = float(is_correct(probes[AUGMENTED_PROBE], test).mean())
        for fitted, values in correct_under_corruption(subject, tried, read, probes).items():
            correct[prefix, fitted] = values
            by_corruption = dict(zip(CORRUPTIONS, values.mean(axis=2).tolist(), strict=True))
            results[f"{prefix}corrupted_accuracy{fitted}"] = float(values.mean())
            results[f"{prefix}corrupted_accuracy{fitted}_by_corruption"] = by_corruption
    per_image = {}
    for fitted in ("", AUGMENTED_PROBE):
        errors, pixel_errors = (1 - correct[prefix, fitted].mean(axis=2) for prefix in ("", "pixel_"))
        # Of a corruption that never misleads the pixels, no share of their error exists.
        counted = pixel_errors.any(axis=1)
        if counted.any():
            results[f"mean_corruption_error{fitted}"] = mean_corruption_error(errors[counted], pixel_errors[counted])
        shares = np.full(len(subject.levels["test"]), np.nan)
        shares[tried] = correct["", fitted].mean(axis=(0, 1))
        per_image[f"corrupted_correct{fitted}"] = shares
    return Findings(results, per_image, {"test": len(tried)})


def augmented_copies(subject: Subject) -> torch.Tensor:
    """Levels (N, C, H, W) of one augmented view of each training image, the same ones at every call."""
    model = subject.model.config
    config = replace(subject.config.augmentation, num_clean_views=0, num_augmented_views=1, num_local_views=0)
    views = Views(config, model.image_size, model.num_levels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # In parts of a fixed size: the draws depend on it.
        pixel_values = torch.cat([views(part)["pixel_values"][0] for part in subject.levels["train"].split(256)])
    return pixels_to_levels(pixel_values, model.num_levels)


def correct_under_corruption(
    subject: Subject, tried: np.ndarray, read: Callable[[torch.Tensor], np.ndarray], probes: dict
) -> dict[str, np.ndarray]:
    """
    Whether each probe gets the test images of indices `tried` (N,) right, (R, G, N) booleans by name of the probe.

    Args:
        read: levels (N, C, H, W) -> features (N, P).
        probes: fitted on such features.
    """
    levels, labels = subject.levels["test"][tried], subject.labels["test"][tried]
    correct = {name: np.empty((len(CORRUPTIONS), len(SEVERITIES), len(tried)), dtype=bool) for name in probes}
    for i, corrupt in enumerate(CORRUPTIONS.values()):
        for j, severity in enumerate(SEVERITIES):
            # The same seed each time: an image is shifted or hidden in one direction or place, only ever further.
            corrupted = corrupt(levels, subject.model.config.num_levels, severity, torch.Generator().manual_seed(0))
            test = Labelled(read(corrupted), labels)
            for name, probe in probes.items():
                correct[name][i, j] = is_correct(probe, test)
    return correct
