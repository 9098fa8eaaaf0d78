"""
Can the model tell images of other kinds, where its score was chosen by none of them?

The score is the one that tells validation images best from changed copies of them ([`foreign_sets.NEAR`]). What is
reported are test images beside slighter changes in three strengths ([`foreign_sets.SHIFTS`]), and beside the images of
`evaluation.foreign_datasets`.

Shape letters: N images, C channels, H height, W width.
"""

import numpy as np
import torch

from ...embedding import Embedding
from ..foreign_sets import NEAR, foreign_sets, images_of_others, shifted_sets
from ..subject import Findings, Subject
from .out_of_distribution import Scores, all_scores, png_bits, separation, strangeness


def evaluate(subject: Subject) -> Findings:
    """
    AUROC and FPR95 of the chosen score, of each set and their means; under `pixel_` those of statistics of the pixels,
    under `random_` of the untrained encoder. Of each test image: the share of foreign images that are stranger; the
    mean of it is the AUROC.
    """
    levels, num_levels, config = subject.levels, subject.model.config.num_levels, subject.config.evaluation
    num_images = subject.affordable(config.num_out_of_distribution)
    near = foreign_sets(levels["validation"], num_levels, num_images)
    novel = shifted_sets(levels["test"], num_levels, num_images)
    novel |= images_of_others(config.foreign_datasets, subject.image_processor, num_images)

    def scores_of_model(inside: str, foreign: dict[str, torch.Tensor]) -> dict[str, Scores]:
        embeddings = {name: subject.embed(of_set, with_likelihood=True) for name, of_set in foreign.items()}
        own = subject.embeddings
        scored = {inside: own[inside], **embeddings}
        return all_scores(own["train"], own["validation"], scored, {inside: levels[inside], **foreign})

    score = best_score(scores_of_model("validation", {name: near[name] for name in NEAR}), "validation")
    untrained = subject.random_embeddings | {name: subject.embed_untrained(of_set) for name, of_set in novel.items()}
    plain = {name: Embedding(rows := statistics(of_set), rows, None) for name, of_set in (levels | novel).items()}
    own = scores_of_model("test", novel)
    results = {"novelty_score": score, **_compare(own, score)}
    for prefix, embeddings in (("pixel_", plain), ("random_", untrained)):
        scores = strangeness(embeddings["train"], embeddings["validation"], embeddings)
        scores = {name: scores[name] for name in own}
        results |= {f"{prefix}{name}": value for name, value in _compare(scores, "combined").items()}
    stranger = [share_stranger(own["test"][score], own[name][score]) for name in novel]
    num_by_set = {name: len(of_set) for name, of_set in novel.items()}
    return Findings(results, {"novelty_auroc": np.mean(stranger, axis=0)}, num_by_set)


def best_score(scores: dict[str, Scores], inside: str) -> str:
    """The name of the score with the highest mean AUROC over all sets but `inside`, the images of the data."""
    aurocs = [separation(scores[inside], scores[name])["auroc"] for name in scores if name != inside]
    return max(scores[inside], key=lambda kind: float(np.mean([auroc[kind] for auroc in aurocs])))


def share_stranger(inside: np.ndarray, foreign: np.ndarray) -> np.ndarray:
    """Of each of `inside` (N,): the share of `foreign` that score higher; a tie counts half."""
    foreign = np.sort(foreign)
    lower, not_higher = (np.searchsorted(foreign, inside, side=side) for side in ("left", "right"))
    return 1 - (lower + not_higher) / (2 * len(foreign))


def statistics(levels: torch.Tensor) -> np.ndarray:
    """
    What needs no model, of levels (N, C, H, W): mean and spread of the pixels, the mean step from a pixel to its
    neighbour on the right and below, and the bits of the PNG file; (N, 5).
    """
    pixels = levels.float()
    steps = [pixels.diff(dim=dim).abs().flatten(1).mean(1) for dim in (3, 2)]
    bits = torch.from_numpy(png_bits(levels)).float()
    return torch.stack([pixels.flatten(1).mean(1), pixels.flatten(1).std(1), *steps, bits], dim=1).numpy()


def _compare(scores: dict[str, Scores], kind: str) -> dict[str, float | dict[str, float]]:
    found = {name: separation(scores["test"], of_set) for name, of_set in scores.items() if name != "test"}
    results = {}
    for metric in ("auroc", "fpr95"):
        by_set = {name: separated[metric][kind] for name, separated in found.items()}
        results |= {f"novelty_{metric}": float(np.mean(list(by_set.values()))), f"novelty_{metric}_by_set": by_set}
    return results
