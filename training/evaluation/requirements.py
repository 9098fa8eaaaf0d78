"""What the images must be for an evaluation to work and to mean something: told before a training, not after it."""

import logging

import numpy as np

from ..config import EvaluationConfig
from ..data.splits import Splits
from .foreign_sets import load_foreign
from .imagenet import require_network


logger = logging.getLogger(__name__)


def require_enough(splits: Splits, config: EvaluationConfig) -> None:
    """
    Warns of classes that the probes cannot learn, or not from as many images as asked for.

    Raises:
        ValueError: a split of fewer than two images, or training images that are all of one class where
            `config.max_images` leaves no others; or a set of `config.foreign_datasets`, or the network of
            `config.imagenet_control`, that cannot be loaded.
    """
    if config.imagenet_control:
        require_network()
    if "novelty" in config.suite:
        for name in config.foreign_datasets:
            load_foreign(name)
    parts = {"training": splits.reference, "validation": splits.validation, "test": splits.test}
    for name, part in parts.items():
        if len(part) < 2:
            raise ValueError(
                f"There is {len(part)} {name} image, but the evaluation needs at least 2, for a spread of their "
                "features; add images, or set data.test_split=null to report the validation split."
            )
    if splits.class_names is None:
        return
    labels = {name: part.labels(config.max_images) for name, part in parts.items()}
    learnt, counts = np.unique(labels["training"], return_counts=True)
    if len(learnt) < 2:
        raise ValueError(
            f"evaluation.max_images={config.max_images} leaves training images of one class, "
            f"{splits.class_names[learnt[0]]!r}, from which no probe learns anything; raise it, set it to 0, or set "
            "data.label_column=null to do without probes."
        )
    for name in ("validation", "test"):
        if unknown := [splits.class_names[label] for label in np.setdiff1d(labels[name], learnt)]:
            logger.warning(
                "%d class(es) of the %s images, %s, have no training image: the probes get all of their images wrong. "
                "Mend the splits, or expect accuracies that are too low.",
                len(unknown),
                name,
                ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else ""),
            )
    if counts.min() < config.num_shots:
        logger.warning(
            "evaluation.num_shots=%d, but %d of %d classes have fewer training images, %r the fewest: %d. They give "
            "all that they have; lower num_shots for a few-shot accuracy of equal classes.",
            config.num_shots,
            (counts < config.num_shots).sum(),
            len(learnt),
            splits.class_names[learnt[counts.argmin()]],
            counts.min(),
        )
