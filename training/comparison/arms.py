"""What is compared: the arms, and their runs."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..config import PretrainConfig
from .sweep import PlannedRun


# Overrides: one value for each axis of the grid.
Point = tuple[str, ...]


@dataclass
class Contest:
    """
    What `training.compare` was asked for.

    Args:
        config: configuration of the hybrid, with `overrides` for every run.
        own_overrides: of arms that have values of their own beside the loss, by name.
        seeds: runs of each arm that are reported, with seeds 1, 2, ...
        budget: what is equal, "steps", "flops" or "seconds".
        jobs: runs at a time.
        grid: axes `KEY=V1,V2,...` that every arm is tuned over.
        max_points: points that each arm may try, those of the grid and beyond; `None` for two more than the grid has.
        weights: contrastive weights of the Pareto picture; `None` for a third and three times that of `config`.
    """

    config: Path
    overrides: list[str]
    seeds: int
    budget: str
    jobs: int
    grid: list[str]
    max_points: int | None
    weights: list[float] | None
    output_dir: Path
    own_overrides: dict[str, list[str]] = field(default_factory=dict)

    def overrides_of(self, name: str, point: Point = ()) -> tuple[str, ...]:
        """Of an arm. What it is comes last, so that nothing that is asked for gives it the loss it is to do without."""
        return (*self.overrides, *self.own_overrides.get(name, ()), *point, *ARMS[name].overrides)


@dataclass(frozen=True)
class Arm:
    """
    What to train for: overrides of the configuration, and the validation values that it is tuned by, with the weights
    of their sum, which is to be high.
    """

    title: str
    overrides: tuple[str, ...]
    tuned_by: dict[str, float]


PROBES = {"validation_linear_accuracy": 0.5, "validation_few_shot_accuracy": 0.5}
LIKELIHOOD = {"validation_bits_per_dim": -1.0}
# What a decoder is told comes of both.
ONE_LOSS = ("optimization.separate_moments=false", "model.decoder_condition=none")
HYBRID = "hybrid"
TUNING_SEED = 0
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
    """The run of an arm at a point of the grid, in a folder that is named after both; a budget can share it."""
    return _planned(contest, name, point, num_steps, seed, (), f"seed-{seed}")


def plan_tuning(contest: Contest, name: str, point: Point, num_steps: int) -> PlannedRun:
    """The same to tune by: with a seed that is not reported, and without the test split."""
    of_validation = ("data.test_split=null", "evaluation.suite=[validation]")
    return _planned(contest, name, point, num_steps, TUNING_SEED, of_validation, "tuning")


def _planned(
    contest: Contest, name: str, point: Point, num_steps: int, seed: int, further: tuple[str, ...], folder: str
) -> PlannedRun:
    overrides = (
        *contest.overrides_of(name, point),
        *further,
        f"optimization.num_steps={num_steps}",
        f"seed={seed}",
    )
    values = [re.sub(r"^.*\.(?=\w+=)", "", override) for override in point]
    named = ",".join([f"num_steps={num_steps}", *values])
    return PlannedRun(contest.config, overrides, contest.output_dir / name / named / folder)


def weights_of(contest: Contest, config: PretrainConfig) -> list[float]:
    """The weights that are asked for; unset, a third and three times that of the configuration."""
    weight = config.model_config().contrastive_weight
    return [float(f"{weight * factor:.2g}") for factor in (1 / 3, 3)] if contest.weights is None else contest.weights
