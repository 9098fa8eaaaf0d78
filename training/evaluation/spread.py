"""
Whether features are spread over many dimensions, or collapse to a few.

Shape letters: N images, P width of a feature.
"""

import numpy as np
import torch

from modeling_hybrid.objectives.telemetry import effective_rank


# Below these, the features say next to nothing: images all look alike, or differ in one direction only.
LEAST_SPREAD, LEAST_RANK = 0.05, 2.0


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


def collapse(values: dict[str, float], prefix: str = "") -> str | None:
    """What is wrong with features of this [`spread`], whose keys begin with `prefix`, if anything."""
    rank, std = values[f"{prefix}effective_rank"], values[f"{prefix}feature_std"]
    if rank >= LEAST_RANK and std >= LEAST_SPREAD:
        return None
    return (
        f"ALARM: the features collapse: effective rank {rank:.2f} (least {LEAST_RANK:g}), spread {std:.3f} (least "
        f"{LEAST_SPREAD:g}). Lower optimization.learning_rate, lengthen optimization.num_warmup_steps, or choose "
        "another model.objective or temperature."
    )
