"""
Can the model tell images of its own kind from others? No outlier is seen before the score is computed.

Shape letters: N images, P width of a feature.
"""

from typing import Literal

import numpy as np
import torch

from modeling_hybrid.likelihood import bits_per_dim
from modeling_hybrid.out_of_distribution import StrangenessScore

from ..metrics.out_of_distribution.out_of_distribution import auroc_and_fpr95
from . import figures
from .embedding import Embedding
from .subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """[`compare_scores`] on the sets of `subject`, and a histogram of their likelihoods."""
    embeddings, foreign = subject.embeddings, subject.foreign_embeddings
    findings = compare_scores(embeddings, foreign)
    if subject.has_likelihood:
        bits = {name: bits_per_dim(embedding.nll, subject.model.config) for name, embedding in foreign.items()}
        test_bits = bits_per_dim(embeddings["test"].nll, subject.model.config)
        aurocs = {name: values["likelihood"] for name, values in findings.figures["ood_auroc_by_set"].items()}
        figures.likelihood_histograms(test_bits, bits, aurocs, subject.figures / "likelihood.png")
    return findings


def compare_scores(embeddings: dict[str, Embedding], foreign: dict[str, Embedding]) -> Findings:
    """
    AUROC of each score and FPR95 of the combined one, averaged over the foreign sets; both set by set.

    Args:
        embeddings: of the training, validation and test split.
        foreign: of each foreign set.
    """
    scores = strangeness(embeddings["train"], embeddings["validation"], {"test": embeddings["test"], **foreign})
    per_image = {f"ood/{name}/{kind}": values for name, kinds in scores.items() for kind, values in kinds.items()}
    inside = scores.pop("test")
    by_set = {name: separation(inside, outside) for name, outside in scores.items()}
    auroc, fpr95 = ({name: values[figure] for name, values in by_set.items()} for figure in ("auroc", "fpr95"))

    def mean(values_by_set: dict[str, dict[str, float]], score: str) -> float:
        return float(np.mean([values[score] for values in values_by_set.values()]))

    names = {"combined": "ood_auroc", "likelihood": "ood_auroc_likelihood", "feature": "ood_auroc_feature"}
    results = {
        **{names[score]: mean(auroc, score) for score in inside},
        "ood_auroc_by_set": auroc,
        "ood_fpr95": mean(fpr95, "combined"),
        "ood_fpr95_by_set": fpr95,
    }
    return Findings(results, per_image)


def strangeness(
    train: Embedding, validation: Embedding, scored: dict[str, Embedding]
) -> dict[str, dict[str, np.ndarray]]:
    """
    Scores (N,) of the images of each of `scored`, by name of the score; higher is stranger.

    They are those of [`StrangenessScore`]: distances from the features of `train`, standardised on `validation`.
    """
    score = StrangenessScore(train.features.shape[1], with_likelihood=train.nll is not None)
    score.fit(torch.from_numpy(train.features), *_tensors(validation))
    return {
        name: {kind: values.numpy() for kind, values in score(*_tensors(embedding)).items()}
        for name, embedding in scored.items()
    }


def _tensors(embedding: Embedding) -> tuple[torch.Tensor, torch.Tensor | None]:
    nll = None if embedding.nll is None else torch.from_numpy(embedding.nll)
    return torch.from_numpy(embedding.features), nll


def separation(
    scores_in: dict[str, np.ndarray], scores_out: dict[str, np.ndarray]
) -> dict[Literal["auroc", "fpr95"], dict[str, float]]:
    """AUROC and FPR95 ([`auroc_and_fpr95`]) of telling the two sets of images apart, each by name of the score."""
    by_score = {}
    for name, inside in scores_in.items():
        is_foreign = np.repeat([False, True], [len(inside), len(scores_out[name])])
        by_score[name] = auroc_and_fpr95(np.concatenate([inside, scores_out[name]]), is_foreign)
    return {figure: {name: values[figure] for name, values in by_score.items()} for figure in ("auroc", "fpr95")}
