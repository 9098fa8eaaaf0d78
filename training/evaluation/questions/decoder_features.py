"""
How well simple classifiers read the classes out of the decoder's states: informative embeddings (cMIM, Livne 2025,
arXiv 2502.19642), which every model with a likelihood has without further training.
"""

from ..probes import few_shot, is_correct, nearest_neighbours
from ..subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """
    Linear, kNN and few-shot accuracy of the decoder's features (prefix `decoder_`), and of encoder and decoder together
    (`joined_`), at the width of the encoder's alone; nothing without labels or without a decoder.
    """
    if subject.labels is None or not subject.model.config.has_decoder:
        return Findings()
    config, results = subject.config.evaluation, {}
    for prefix in ("decoder_", "joined_"):
        splits = subject.labelled(prefix)
        results |= {
            f"{prefix}linear_accuracy": float(is_correct(subject.linear_probe(prefix), splits[2]).mean()),
            f"{prefix}knn_accuracy": float(nearest_neighbours(*splits).mean()),
            f"{prefix}few_shot_accuracy": float(few_shot(*splits, config.num_shots, config.num_draws).mean()),
        }
    return Findings(results)
