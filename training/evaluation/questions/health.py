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


MAX_IMAGES = 256
# Of the views that gradients are computed through at once: a model with 256 levels keeps some 10 kB for each.
MAX_GRADIENT_SUBPIXELS = 2**16


def evaluate(subject: Subject) -> Findings:
    """
    Of the features of test images: effective rank (also of raw pixels and of the untrained encoder) and spread. Of
    those of views of at most 256 validation images: alignment and uniformity. Of both losses: the cosine of their
    gradients, on as many of these images as memory allows.
    """
    results = spread(subject.features["test"])
    results["pixel_effective_rank"] = spread(subject.pixels["test"])["effective_rank"]
    results["random_effective_rank"] = spread(subject.random_features["test"])["effective_rank"]
    views = views_of(subject, MAX_IMAGES)
    if len(views["view_kinds"]) > 1:
        with torch.no_grad():
            kinds = views["view_kinds"].to(subject.model.device)
            rows = torch.stack(
                [
                    torch.cat(
                        [
                            subject.model.encoder(part, view_kinds=kind.expand(len(part))).pooler_output
                            for part in view.split(subject.batch_size)
                        ]
                    )
                    for view, kind in zip(views["pixel_values"], kinds, strict=True)
                ]
            )
        rows = torch.nn.functional.normalize(rows.float(), dim=-1)
        results |= {"alignment": float(alignment(rows)), "uniformity": float(uniformity(rows))}
    num_images = {"validation": views["pixel_values"].shape[1]}
    affordable = max(2, MAX_GRADIENT_SUBPIXELS // (len(views["view_kinds"]) * subject.model.config.num_dims))
    if affordable < num_images["validation"]:
        views = views_of(subject, affordable)
    cosine = gradient_cosine(subject.model, views)
    if cosine is not None:
        results["gradient_cosine"] = float(cosine)
        num_images["validation, gradients"] = views["pixel_values"].shape[1]
    return Findings(results, num_images=num_images)


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
