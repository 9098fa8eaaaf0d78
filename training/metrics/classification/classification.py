"""Accuracy and macro F1, as an `evaluate` module that loads from this folder without a network."""

import datasets
import evaluate
from sklearn import metrics


class Classification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy and macro F1 of predicted classes, both in [0, 1], by scikit-learn.",
            citation="",
            inputs_description="predictions and references: integer classes.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        return {
            "accuracy": float(metrics.accuracy_score(references, predictions)),
            "macro_f1": float(metrics.f1_score(references, predictions, average="macro")),
        }
