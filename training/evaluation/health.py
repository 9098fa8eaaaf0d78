"""
Are the features alive: spread over many dimensions, or collapsed to a few? And do the two losses pull together?

Shape letters: N images, B batch, P width of the pooled feature.
"""

import numpy as np
import torch

from modeling_hybrid import HybridForPreTraining
from modeling_hybrid.objectives.telemetry import alignment, effective_rank, uniformity

from ..augmentation import Views
from .subject import Findings, Subject


# Below these, the features say next to nothing: images all look alike, or differ in one direction only.
LEAST_SPREAD, LEAST_RANK = 0.05, 2.0


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


def spread(features: np.ndarray) -> dict[str, float]:
    """
    Of features (N, P): their effective rank (RankMe, Garrido et al. 2023, arXiv 2210.02885), and `feature_std`, the
    mean standard deviation of a dimension of features of length one, times the root of P: about 1 where they point
    everywhere, 0 where they collapse to a point (Chen and He 2021, arXiv 2011.10566).
    """
    rows = torch.from_numpy(features)
    unit = torch.nn.functional.normalize(rows, dim=-1)
    return {
        "effective_rank": float(effective_rank(rows)),
        "feature_std": float(unit.std(dim=0, correction=0).mean() * rows.shape[1] ** 0.5),
    }


def collapse(figures: dict[str, float], prefix: str = "") -> str | None:
    """What is wrong with features of this [`spread`], whose keys begin with `prefix`, if anything."""
    rank, std = figures[f"{prefix}effective_rank"], figures[f"{prefix}feature_std"]
    if rank >= LEAST_RANK and std >= LEAST_SPREAD:
        return None
    return (
        f"ALARM: the features collapse: effective rank {rank:.2f} (least {LEAST_RANK:g}), spread {std:.3f} (least "
        f"{LEAST_SPREAD:g}). Lower optimization.learning_rate, lengthen optimization.num_warmup_steps, or choose "
        "another model.objective or temperature."
    )


def gradient_cosine(model: HybridForPreTraining, inputs: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """
    Cosine of the gradients of both losses with respect to the parts of the encoder that both reach: 1 where they agree,
    below 0 where one undoes the other. `None` where there is one loss only.

    Args:
        inputs: what `model` takes.
    """
    if min(model.config.contrastive_weight, model.config.generative_weight) == 0:
        return None
    parameters = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        output = model(**inputs)
        if output.contrastive_loss is None:
            return None
        losses = (output.contrastive_loss, output.generative_loss)
        gradients = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    shared = [pair for pair in zip(*gradients, strict=True) if all(part is not None for part in pair)]
    rows = (torch.cat([part.flatten() for part in of_loss]) for of_loss in zip(*shared, strict=True))
    return torch.nn.functional.cosine_similarity(*rows, dim=0)


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
