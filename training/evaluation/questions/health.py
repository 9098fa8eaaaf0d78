"""
Are the features alive: spread over many dimensions, or collapsed to a few? And do the two losses pull together?

Shape letters: P width of the pooled feature.
"""

import torch

from modeling_hybrid.objectives.telemetry import alignment, uniformity

from ...data.views import Views
from ...optimization.gradients import gradient_cosine
from ..spread import spread
from ..subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """
    Of the features of test images: effective rank (also of raw pixels and of the untrained encoder) and spread. Of
    those of views of validation images: alignment and uniformity. Of both losses: the cosine of their gradients.
    """
    results = spread(subject.features["test"])
    results["pixel_effective_rank"] = spread(subject.pixels["test"])["effective_rank"]
    results["random_effective_rank"] = spread(subject.random_features["test"])["effective_rank"]
    views = views_of(subject, num_images=256)
    if len(views["view_kinds"]) > 1:
        with torch.no_grad():
            kinds = views["view_kinds"].to(subject.model.device)
            rows = torch.stack(
                [
                    subject.model.encoder(view, view_kinds=kind.expand(len(view))).pooler_output
                    for view, kind in zip(views["pixel_values"], kinds, strict=True)
                ]
            )
        rows = torch.nn.functional.normalize(rows.float(), dim=-1)
        results |= {"alignment": float(alignment(rows)), "uniformity": float(uniformity(rows))}
    cosine = gradient_cosine(subject.model, views)
    return Findings(results if cosine is None else results | {"gradient_cosine": float(cosine)})


def views_of(subject: Subject, num_images: int) -> dict[str, torch.Tensor]:
    """Views of some validation images, as in the training; the same at every call."""
    model, config = subject.model, subject.config
    needs = model.objective.needs
    views = Views(config.augmentation, model.config.image_size, model.config.num_levels, with_boxes="boxes" in needs)
    chosen = subject.splits.validation
    levels = chosen.all_levels(num_images).to(model.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = views.to(model.device)(levels)
    if "labels" in needs and subject.labels is not None:
        inputs["labels"] = torch.from_numpy(chosen.labels(num_images)).to(model.device)
    return inputs
