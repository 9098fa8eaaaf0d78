"""What is compared: the arms, the grid that each is tuned over, and the runs that follow from both."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import PretrainConfig
from .sweep import PlannedRun


@dataclass
class Contest:
    """
    What `training.compare` was asked for.

    Args:
        config: configuration of the hybrid, with `overrides` for every run.
        seeds: runs of each arm, with seeds 0, 1, ...
        budget: what is equal, "steps", "flops" or "seconds".
        jobs: runs at a time.
        grid: axes `KEY=V1,V2,...` that every arm is tuned over.
        weights: contrastive weights of the Pareto picture; `None` for a third and three times that of `config`.
    """

    config: Path
    overrides: list[str]
    seeds: int
    budget: str
    jobs: int
    grid: list[str]
    weights: list[float] | None
    output_dir: Path


@dataclass(frozen=True)
class Arm:
    """
    What to train for: overrides of the configuration, and the validation values that it is tuned by, with the weights
    of their sum, which is to be high.
    """

    title: str
    overrides: tuple[str, ...]
    tuned_by: dict[str, float]


# Overrides: one value for each axis of the grid.
Point = tuple[str, ...]

PROBES = {"validation_linear_accuracy": 0.5, "validation_few_shot_accuracy": 0.5}
LIKELIHOOD = {"validation_bits_per_dim": -1.0}
ONE_LOSS = ("optimization.separate_moments=false",)
HYBRID = "hybrid"
ARMS = {
    # The strongest control there is: without a likelihood to keep, every patch may look at every other.
    "contrastive": Arm(
        "contrastive only", ("model.generative_weight=0", "model.encoder_attention=bidirectional", *ONE_LOSS), PROBES
    ),
    # Its features come from what it trains: causal states, averaged without weights of a pooling.
    "generative": Arm(
        "generative only",
        ("model.contrastive_weight=0", "model.encoder_attention=causal", "model.pooling=regional", *ONE_LOSS),
        LIKELIHOOD,
    ),
    # Both aims: a point of accuracy is worth a hundredth of a bit, which is also what the claim may cost.
    HYBRID: Arm("hybrid", (), PROBES | LIKELIHOOD),
}


def plan(contest: Contest, name: str, point: Point, num_steps: int, seed: int) -> PlannedRun:
    """The run of an arm at a point of the grid, in a folder that is named after both."""
    overrides = (
        *contest.overrides,
        *point,
        # After what is asked for, so that no override or `--grid` gives an arm the loss it is to do without.
        *ARMS[name].overrides,
        f"optimization.num_steps={num_steps}",
        f"seed={seed}",
    )
    values = ",".join(re.sub(r"^.*\.(?=\w+=)", "", override) for override in point)
    return PlannedRun(contest.config, overrides, contest.output_dir / name / values / f"seed-{seed}")


def tune(name: str, planned: dict[Point, PlannedRun]) -> dict[str, Any]:
    """The points of the grid with the validation value that the arm is tuned by, and the best of them."""
    weights = ARMS[name].tuned_by
    found = {point: run.evaluation() for point, run in planned.items()}
    scores = {point: sum(weight * run[value] for value, weight in weights.items()) for point, run in found.items()}
    points = [{"overrides": list(point), "score": score} for point, score in scores.items()]
    return {"tuned_by": weights, "points": points, "chosen": list(max(scores, key=scores.get))}


def grid_points(grid: list[str], config: PretrainConfig) -> list[Point]:
    """All combinations of the values of `KEY=V1,V2,...`; unset, half, one and two times the learning rate."""
    if not grid:
        rate = config.optimization.learning_rate
        grid = [f"optimization.learning_rate={','.join(f'{rate * factor:g}' for factor in (0.5, 1, 2))}"]
    axes = []
    for axis in grid:
        key, _, values = axis.partition("=")
        if not key or not values:
            raise ValueError(
                f"--grid {axis!r} is not of the form KEY=V1,V2,..., for instance optimization.learning_rate=1e-3,2e-3."
            )
        axes.append([f"{key}={value}" for value in values.split(",")])
    return list(itertools.product(*axes))


def weights_of(contest: Contest, config: PretrainConfig) -> list[float]:
    """The weights that are asked for; unset, a third and three times that of the configuration."""
    weight = config.model_config().contrastive_weight
    return [float(f"{weight * factor:.2g}") for factor in (1 / 3, 3)] if contest.weights is None else contest.weights
