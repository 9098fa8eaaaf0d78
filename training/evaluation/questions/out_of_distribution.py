"""
Can the model tell images of its own kind from others? No outlier is seen before the scores are computed.

Shape letters: N images, C channels, H height, W width, P width of a feature.
"""

import io
import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from modeling_hybrid.likelihood import bits_per_dim
from modeling_hybrid.strangeness import StrangenessScore

from ...embedding import Embedding
from ...metrics.out_of_distribution.out_of_distribution import auroc_and_fpr95
from ...reports import pictures
from ..foreign_sets import NEAR
from ..subject import Findings, Subject


# Scores (N,) of the images of a set, higher is stranger, by name of the score.
Scores = dict[str, np.ndarray]


def evaluate(subject: Subject) -> Findings:
    """[`compare_scores`] on the sets of `subject`, a histogram of their likelihoods, and the ROC curves."""
    embeddings, foreign = subject.embeddings, subject.foreign_embeddings
    scores = all_scores(
        embeddings["train"],
        embeddings["validation"],
        {"test": embeddings["test"], **foreign},
        {"test": subject.levels["test"], **subject.foreign_levels},
    )
    findings = compare_scores(scores)
    findings.num_images = {name: len(levels) for name, levels in subject.foreign_levels.items()}
    pictures.roc_curves(scores["test"], pooled_by_group(scores), subject.pictures / "roc.png")
    if subject.has_likelihood:
        bits = {name: bits_per_dim(embedding.nll, subject.model.config) for name, embedding in foreign.items()}
        test_bits = bits_per_dim(embeddings["test"].nll, subject.model.config)
        aurocs = {name: values["likelihood"] for name, values in findings.results["ood_auroc_by_set"].items()}
        pictures.likelihood_histograms(test_bits, bits, aurocs, subject.pictures / "likelihood.png")
    return findings


def compare_scores(scores: dict[str, Scores]) -> Findings:
    """
    AUROC and FPR95 of each score: set by set, and as the mean over the near, the far and all foreign sets.

    The flat values without a group in their name are means over all sets; those without a score, the combined score.
    `ood_auroc_best_score` is that of the score which does best on these very sets: more than a user could know.

    Args:
        scores: of each set; "test" are the images of the data, every other set is foreign.
    """
    results = {}
    groups = _groups(scores)
    separations = {name: separation(scores["test"], scores[name]) for name in groups["all"]}
    for metric in ("auroc", "fpr95"):
        by_set = {name: values[metric] for name, values in separations.items()}
        by_group = {
            group: {score: float(np.mean([by_set[name][score] for name in names])) for score in scores["test"]}
            for group, names in groups.items()
        }
        flat = {group: means["combined"] for group, means in by_group.items()}
        results |= {f"ood_{metric}": flat.pop("all")}
        results |= {f"ood_{metric}_{group}": value for group, value in flat.items()}
        if metric == "auroc":
            results |= {f"ood_auroc_{name}": value for name, value in by_group["all"].items() if name != "combined"}
            results["ood_auroc_best_score"] = max(by_group["all"].values())
        results |= {f"ood_{metric}_by_set": by_set, f"ood_{metric}_by_group": by_group}
    per_image = {f"ood/{name}/{kind}": values for name, kinds in scores.items() for kind, values in kinds.items()}
    return Findings(results, per_image)


def pooled_by_group(scores: dict[str, Scores]) -> dict[str, Scores]:
    """The scores of all foreign images of each group of sets, by name of the group."""
    return {
        group: {kind: np.concatenate([scores[name][kind] for name in names]) for kind in scores["test"]}
        for group, names in _groups(scores).items()
    }


def _groups(scores: dict[str, Scores]) -> dict[str, list[str]]:
    """Names of the near, the far and all foreign sets; a group that has none is left out."""
    foreign = [name for name in scores if name != "test"]
    near, far = ([name for name in foreign if (name in NEAR) is is_near] for is_near in (True, False))
    return {group: names for group, names in (("near", near), ("far", far), ("all", foreign)) if names}


def all_scores(
    train: Embedding, validation: Embedding, scored: dict[str, Embedding], levels: dict[str, torch.Tensor]
) -> dict[str, Scores]:
    """
    Every score of the images of each of `scored`: those of the detector ([`strangeness`]), and others to compare with.

    Args:
        levels: (N, C, H, W) of the same images.
    """
    by_set = strangeness(train, validation, scored)
    for name, embedding in scored.items():
        by_set[name]["knn"] = neighbour_distance(train.regions, embedding.regions)
        if embedding.nll is not None:
            by_set[name]["typicality"] = distance_from_typical(train.nll, embedding.nll)
            by_set[name]["complexity"] = excess_over_png(embedding.nll, levels[name])
    return by_set


def strangeness(train: Embedding, validation: Embedding, scored: dict[str, Embedding]) -> dict[str, Scores]:
    """
    Scores of the images of each of `scored` by the detector that users get: those of [`StrangenessScore`], distances
    from the regional means of `train`, standardised on `validation`.
    """
    score = StrangenessScore(train.regions.shape[1], with_likelihood=train.nll is not None)
    score.fit(torch.from_numpy(train.regions), *_tensors(validation))
    return {
        name: {kind: values.numpy() for kind, values in score(*_tensors(embedding)).items()}
        for name, embedding in scored.items()
    }


def _tensors(embedding: Embedding) -> tuple[torch.Tensor, torch.Tensor | None]:
    nll = None if embedding.nll is None else torch.from_numpy(embedding.nll)
    return torch.from_numpy(embedding.regions), nll


def neighbour_distance(train_features: np.ndarray, features: np.ndarray) -> np.ndarray:
    """
    Distance of each feature (N, P) from its k-th nearest training feature, all scaled to length one (Sun et al. 2022,
    arXiv 2204.06507). One neighbour for every thousand training images, as in the paper on CIFAR-10.
    """
    num_neighbours = max(1, len(train_features) // 1000)
    neighbours = NearestNeighbors(n_neighbors=num_neighbours).fit(normalize(train_features))
    return neighbours.kneighbors(normalize(features))[0][:, -1]


def distance_from_typical(train_nll: np.ndarray, nll: np.ndarray) -> np.ndarray:
    """
    How far the nats (N,) of each image are from the mean of the training images, above or below: images that are far
    too likely are strange, too (Nalisnick et al. 2019, arXiv 1906.02994; here with one image at a time).
    """
    return np.abs(nll - train_nll.mean())


def excess_over_png(nll: np.ndarray, levels: torch.Tensor) -> np.ndarray:
    """
    Bits that the model needs for each image of levels (N, C, H, W) beyond those of its PNG file, which corrects for
    plain images being likely to every model (Serra et al. 2020, arXiv 1909.11480).

    Args:
        nll: (N,) nats.
    """
    return nll / math.log(2) - png_bits(levels)


def png_bits(levels: torch.Tensor) -> np.ndarray:
    """Bits (N,) of the PNG file of each image of levels (N, C, H, W)."""

    def bits(pixels: np.ndarray) -> int:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        return 8 * len(file.getvalue())

    images = levels.permute(0, 2, 3, 1).numpy()
    images = images[..., 0] if images.shape[-1] == 1 else images
    return np.array([bits(np.ascontiguousarray(image)) for image in images])


def separation(scores_in: Scores, scores_out: Scores) -> dict[Literal["auroc", "fpr95"], dict[str, float]]:
    """AUROC and FPR95 ([`auroc_and_fpr95`]) of telling the two sets of images apart, each by name of the score."""
    by_score = {}
    for name, inside in scores_in.items():
        is_foreign = np.repeat([False, True], [len(inside), len(scores_out[name])])
        by_score[name] = auroc_and_fpr95(np.concatenate([inside, scores_out[name]]), is_foreign)
    return {metric: {name: values[metric] for name, values in by_score.items()} for metric in ("auroc", "fpr95")}
