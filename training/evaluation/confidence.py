"""
How far the confidences of a classifier are to be trusted, as they are and after temperature scaling.

Shape letters: N images, Y classes.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error


NUM_BINS = 15
# A probe without a mistake on validation would ask for a temperature of 0.
TEMPERATURES = (0.05, 20.0)


def calibration(
    logits_validation: np.ndarray, labels_validation: np.ndarray, logits_test: np.ndarray, labels_test: np.ndarray
) -> dict[str, float]:
    """
    How far confidences are to be trusted; logits (N, Y) and integer labels (N,) in 0..Y-1 of both splits.

    Returns:
        `ece`, `brier` and `nll` on the test split ([`calibration_errors`]); the `temperature` that validation asks for
        ([`fit_temperature`]); and the three errors with it: `calibrated_ece`, `calibrated_brier`, `calibrated_nll`.
    """
    temperature = fit_temperature(logits_validation, labels_validation)
    calibrated = calibration_errors(logits_test / temperature, labels_test)
    return {
        **calibration_errors(logits_test, labels_test),
        "temperature": temperature,
        **{f"calibrated_{name}": value for name, value in calibrated.items()},
    }


def calibration_errors(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    Errors of the probabilities that logits (N, Y) stand for, given the right labels (N,); 0 is best for each.

    Returns:
        `ece`: distance of accuracy from confidence, the mean over bins of confidence of equal width, each with the
        weight of its images (expected calibration error; Guo et al. 2017, arXiv 1706.04599, equation 3). `brier`: mean
        squared distance of the probabilities from those of the right class, summed over the classes, so at most 2.
        `nll`: nats of the right class.
    """
    logits = logits.astype(np.float64)
    probabilities = softmax(logits, axis=1)
    classes = np.arange(logits.shape[1])
    error = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=len(classes), n_bins=NUM_BINS, norm="l1"
    )
    return {
        "ece": float(error),
        "brier": float(brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)),
        "nll": class_nll(logits, labels),
    }


def class_nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean nats of the right class, from logits (N, Y)."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """
    The number that logits (N, Y) are to be divided by for the labels (N,) to be most likely (temperature scaling; Guo
    et al. 2017, arXiv 1706.04599, section 4.2), kept within [`TEMPERATURES`].
    """

    def loss(log_temperature: float) -> float:
        return class_nll(logits / np.exp(log_temperature), labels)

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))
