"""
Does the probe know how sure it may be? Confidence against accuracy, as it is and after temperature scaling.

Shape letters: N images, Y classes.
"""

import numpy as np
from scipy.special import softmax
from sklearn.pipeline import Pipeline

from ...reports import pictures
from ..confidence import NUM_BINS, calibration
from ..subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """[`calibration`] of the linear probe on features and on raw pixels, and a picture; nothing without labels."""
    if subject.labels is None:
        return Findings()
    labels = subject.labels
    num_classes = 1 + max(int(values.max()) for values in labels.values())

    results = {}
    for prefix in ("pixel_", ""):
        probe, (_, *others) = subject.linear_probe(prefix), subject.labelled(prefix)
        on_validation, on_test = (class_logits(probe, split.features, num_classes) for split in others)
        found = calibration(on_validation, labels["validation"], on_test, labels["test"])
        results |= {f"{prefix}linear_{name}": value for name, value in found.items()}
    # The last ones are those of the features.
    confidence = softmax(on_test, axis=1).max(axis=1)
    calibrated = softmax(on_test / found["temperature"], axis=1).max(axis=1)
    correct = on_test.argmax(axis=1) == labels["test"]
    named = {"linear probe": confidence, "after temperature scaling": calibrated}
    pictures.reliability_diagram(named, correct, NUM_BINS, subject.pictures / "calibration.png")
    per_image = {"confidence": confidence, "calibrated_confidence": calibrated, "linear_correct": correct}
    return Findings(results, per_image)


def class_logits(probe: Pipeline, features: np.ndarray, num_classes: int) -> np.ndarray:
    """
    Logits (N, Y) of a fitted classifier.

    A class that it was shown no image of gets the lowest logit of each image.
    """
    found = probe.decision_function(features)
    if found.ndim == 1:
        # Of two classes, scikit-learn gives the log of the odds of the second.
        found = np.stack([np.zeros_like(found), found], axis=1)
    logits = np.repeat(found.min(axis=1, keepdims=True), num_classes, axis=1)
    logits[:, probe.classes_] = found
    return logits
