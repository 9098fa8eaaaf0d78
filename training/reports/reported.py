"""
What is reported of a run, in which order and with how many digits: cards, comparisons and summaries all read it here.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Reported:
    """
    A value of `evaluation.json`.

    Args:
        key: in `evaluation.json`; a point descends into a dictionary. The same of raw pixels is under `pixel_KEY`, of
            the untrained encoder under `random_KEY`, of an ImageNet network under `imagenet_KEY`.
        per_image: key of `per_image.npz` whose mean over test images it is; `None` where it is no such mean.
        controls_key: key of the value that the controls of a comparison are given instead.
        hub_metric: metric type of the Hub, where the model card shows the value.
        column: its title in tables of one line a run, where these show it.
        better: which end is the better one, where one is.
    """

    title: str
    key: str
    per_image: str | None = None
    digits: int = 3
    controls_key: str | None = None
    hub_metric: str | None = None
    column: str | None = None
    better: Literal["high", "low"] | None = None

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return self.key if self.controls_key is None else f"{self.key}, controls {self.controls_key}"

    def of(self, run: dict[str, Any], prefix: str = "", is_control: bool = False) -> float | None:
        """Its value in a run, or in the baseline of that `prefix`; `None` where there is none."""
        value: Any = run
        for name in (prefix + (self.controls_key if is_control and self.controls_key else self.key)).split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def show(self, values: list[float | None]) -> str:
        """Mean ± standard deviation (n - 1) of its values in several runs, or the one value; "" if one is missing."""
        if not values or None in values:
            return ""
        return self.text(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)

    def text(self, mean: float, spread: float | None = None) -> str:
        shown = f" ± {spread:.{self.digits}f}" if spread is not None and self.digits else ""
        return f"{mean:.{self.digits}f}{shown}"


# Prefixes of the results of samples that are drawn from drawn features, with what they are.
TWO_STAGES = {
    "two_stage_": "two stages",
    "two_stage_guidance_15_": "two stages, guidance 1.5",
    "two_stage_guidance_30_": "two stages, guidance 3",
}

REPORTED = (
    Reported(
        "linear probe accuracy",
        "linear_accuracy",
        "linear_correct",
        hub_metric="accuracy",
        column="linear",
        better="high",
    ),
    Reported("kNN accuracy", "knn_accuracy", "knn_correct", hub_metric="accuracy"),
    Reported("few-shot accuracy, 1 label per class", "few_shot_accuracy_by_shots.1"),
    Reported("few-shot accuracy, 5 labels", "few_shot_accuracy_by_shots.5"),
    Reported(
        "few-shot accuracy",
        "few_shot_accuracy",
        "few_shot_correct",
        hub_metric="accuracy",
        column="few-shot",
        better="high",
    ),
    Reported("few-shot accuracy, 100 labels", "few_shot_accuracy_by_shots.100"),
    Reported("linear probe accuracy, decoder features", "decoder_linear_accuracy"),
    Reported("linear probe accuracy, encoder and decoder joined", "joined_linear_accuracy"),
    Reported("few-shot accuracy, decoder features", "decoder_few_shot_accuracy"),
    Reported("few-shot accuracy, encoder and decoder joined", "joined_few_shot_accuracy"),
    Reported("fine-tuned accuracy", "finetuned_accuracy", "finetuned_correct", hub_metric="accuracy"),
    Reported("certified accuracy (PAC-Bayes, 95 %)", "certified_accuracy"),
    Reported("certified accuracy by test images alone", "held_out_certified_accuracy"),
    Reported("retrieval, recall at 1", "retrieval_recall_at_1"),
    Reported("retrieval, mean average precision", "retrieval_map", hub_metric="mean_average_precision"),
    Reported(
        "bits per dimension",
        "bits_per_dim",
        "bits_per_dim",
        hub_metric="bits_per_dim",
        column="bits/dim",
        better="low",
    ),
    Reported("bits per dimension, test minus training", "bits_per_dim_gap"),
    Reported("bits per dimension given the latent", "conditional_bits_per_dim", "conditional_bits_per_dim"),
    Reported("bits per dimension, importance-sampled estimate", "estimated_bits_per_dim", "estimated_bits_per_dim"),
    Reported(
        "bits of an image that its feature saves",
        "information_bits",
        "information_bits",
        digits=1,
        column="bits saved by its features",
    ),
    Reported("the same, feature of another image", "information_bits_of_another", digits=1, column="by another's"),
    Reported("cosine of a variation's feature to the given one", "variation_cosine", digits=2, column="cosine"),
    Reported("AUROC of a variation's feature, right against wrong image", "variation_auroc", column="AUROC"),
    Reported("bits of an image, of a decoder trained afterwards", "bits_without_features", digits=1, column="bits"),
    Reported(
        "the same, given the frozen feature",
        "bits_given_features",
        digits=1,
        column="bits given its features",
        better="low",
    ),
    Reported("bits that the frozen feature saves", "kept_bits", "kept_bits", digits=1, column="kept", better="high"),
    Reported("the same, feature of another image", "kept_bits_of_another", digits=1, column="kept of another"),
    Reported("OOD AUROC, combined score", "ood_auroc", hub_metric="roc_auc", column="OOD AUROC", better="high"),
    Reported(
        "OOD AUROC, combined score; of single losses the best score", "ood_auroc", controls_key="ood_auroc_best_score"
    ),
    Reported("OOD AUROC, likelihood alone", "ood_auroc_likelihood", hub_metric="roc_auc"),
    Reported("OOD AUROC, feature alone", "ood_auroc_feature", hub_metric="roc_auc"),
    Reported("OOD AUROC, near sets", "ood_auroc_near", hub_metric="roc_auc"),
    Reported("OOD AUROC, far sets", "ood_auroc_far", hub_metric="roc_auc"),
    Reported("OOD FPR95, combined score", "ood_fpr95", hub_metric="fpr95"),
    Reported("AUROC of kinds that no score was chosen by", "novelty_auroc", "novelty_auroc"),
    Reported("the same, FPR95", "novelty_fpr95"),
    Reported("accuracy on corrupted images", "corrupted_accuracy", "corrupted_correct", hub_metric="accuracy"),
    Reported(
        "accuracy on corrupted images, probe fitted on augmented ones too",
        "corrupted_accuracy_augmented_probe",
        "corrupted_correct_augmented_probe",
    ),
    Reported("mean corruption error (pixels: 1)", "mean_corruption_error", hub_metric="mean_corruption_error"),
    Reported("mean corruption error, probe fitted on augmented ones too", "mean_corruption_error_augmented_probe"),
    Reported("accuracy under attack (PGD)", "adversarial_accuracy", "adversarial_correct"),
    Reported("calibration error of the linear probe", "linear_ece", hub_metric="ece"),
    Reported("calibration error after temperature scaling", "linear_calibrated_ece"),
    Reported("Frechet distance of samples", "frechet_distance", digits=2, hub_metric="frechet_distance"),
    Reported("precision of samples", "precision", hub_metric="precision"),
    Reported("recall of samples", "recall", hub_metric="recall"),
    Reported("samples that a classifier is sure of", "legible_share"),
    *(
        Reported(f"{title}, {kind}", f"{prefix}{key}", digits=digits)
        for prefix, kind in TWO_STAGES.items()
        for title, key, digits in (
            ("Frechet distance of samples", "frechet_distance", 2),
            ("precision of samples", "precision", 3),
            ("recall of samples", "recall", 3),
            ("samples that a classifier is sure of", "legible_share", 3),
        )
    ),
    Reported(
        "effective rank of the features",
        "effective_rank",
        digits=1,
        hub_metric="effective_rank",
        column="effective rank",
    ),
    Reported("cosine of the gradients of both losses", "gradient_cosine"),
    Reported("training seconds", "train_seconds", digits=0, column="training seconds"),
)


def table(head: list[str], rows: list[list[str]], mark: str = "---") -> str:
    """A Markdown table; `mark` says how the columns after the first are aligned ("---:" to the right)."""
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    lines.insert(1, "|---" + f"|{mark}" * (len(head) - 1) + "|")
    return "\n".join(lines)
