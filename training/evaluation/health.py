"""Are the features alive: spread over many dimensions, or collapsed to a few?"""

import torch

from modeling_hybrid.objectives.telemetry import effective_rank

from .subject import Findings, Subject


def evaluate(subject: Subject) -> Findings:
    """Effective rank (RankMe) of the features and of raw pixels of the test split."""
    return Findings(
        {
            "effective_rank": float(effective_rank(torch.from_numpy(subject.features["test"]))),
            "pixel_effective_rank": float(effective_rank(torch.from_numpy(subject.pixels["test"]))),
        }
    )
