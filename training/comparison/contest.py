"""The contest of contrastive alone, generative alone, and both: plan, tune, train, compare, write."""

import json

import numpy as np

from ..config import PretrainConfig, load_config
from ..reports.reported import REPORTED
from . import pictures
from .arms import ARMS, HYBRID, TUNING_SEED, Contest, Point, plan, weights_of
from .budget import equal_budget
from .significance import Difference, as_json, difference_of_runs, paired_difference
from .sweep import PlannedRun
from .table import table
from .tuning import grid_points, require_finished, tune


def compare(contest: Contest, command: str) -> None:
    config = load_config(contest.config, contest.overrides)
    grid = grid_points(contest.grid, config)
    max_points = len(grid) + 2 if contest.max_points is None else contest.max_points
    check(contest, config, grid, max_points)
    contest.output_dir.mkdir(parents=True, exist_ok=True)
    budget = equal_budget(contest, config)
    num_steps = budget["num_steps"]

    def planned(name: str, point: Point, seed: int) -> PlannedRun:
        return plan(contest, name, point, num_steps[name], seed)

    tuning = tune(contest, grid, max_points, num_steps)
    chosen = {name: tuple(found["chosen"]) for name, found in tuning.items()}
    # Others than the one that the arms were tuned with: nothing was chosen by what is reported.
    seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + contest.seeds)
    runs = {name: [planned(name, chosen[name], seed) for seed in seeds] for name in ARMS}
    own_weight = config.model_config().contrastive_weight
    sweep = {own_weight: runs[HYBRID][0]} | {
        weight: planned(HYBRID, (*chosen[HYBRID], f"model.contrastive_weight={weight:g}"), seeds[0])
        for weight in weights_of(contest, config)
        if weight != own_weight
    }
    # One seed of every arm first, so that a first picture is soon there.
    in_order = [run for of_seed in zip(*runs.values(), strict=True) for run in of_seed] + list(sweep.values())
    require_finished(list(dict.fromkeys(in_order)), contest.jobs)
    write(contest, command, runs, sweep, {**budget, "tuning": tuning, "max_points": max_points})


def check(contest: Contest, config: PretrainConfig, grid: list[Point], max_points: int) -> None:
    """Raise `ValueError` on what would fail only after the first runs."""
    model = config.model_config()
    if unknown := set(contest.own_overrides) - set(ARMS):
        raise ValueError(f"--arm {min(unknown)} is no arm; there are {', '.join(ARMS)}.")
    if contest.seeds < 1:
        raise ValueError(f"--seeds {contest.seeds} must be at least 1.")
    if max_points < len(grid):
        raise ValueError(f"--max-points {max_points} is less than the {len(grid)} points of --grid; raise it.")
    if config.data.label_column is None:
        raise ValueError("data.label_column is null, but the arms are compared by what classifiers read out of them.")
    if not model.has_both_losses:
        raise ValueError(
            f"model.contrastive_weight={model.contrastive_weight} and generative_weight={model.generative_weight} "
            "describe no hybrid; both must be positive."
        )
    for weight in weights_of(contest, config):
        load_config(contest.config, [*contest.overrides, f"model.contrastive_weight={weight:g}"])


def write(
    contest: Contest,
    command: str,
    runs: dict[str, list[PlannedRun]],
    sweep: dict[float, PlannedRun],
    details: dict,
) -> None:
    """`comparison.json`, `table.md` and the pictures, in a folder of the budget."""
    folder = contest.output_dir / f"equal_{contest.budget}"
    folder.mkdir(exist_ok=True)
    evaluations = {name: [run.evaluation() for run in of_arm] for name, of_arm in runs.items()}
    per_image = {name: [run.per_image() for run in of_arm] for name, of_arm in runs.items()}
    versus = {
        other: differences(evaluations[HYBRID], evaluations[other], per_image[HYBRID], per_image[other])
        for other in ARMS
        if other != HYBRID
    }
    comparison = {
        "command": command,
        "config": str(contest.config),
        "own_overrides": contest.own_overrides,
        "seeds": [run["seed"] for run in evaluations[HYBRID]],
        "hardware": evaluations[HYBRID][0]["hardware"],
        **details,
        "arms": evaluations,
        "hybrid_minus": {other: as_json(found) for other, found in versus.items()},
        "weights": [{"contrastive_weight": weight, **sweep[weight].evaluation()} for weight in sorted(sweep)],
    }
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")
    titles = {name: arm.title for name, arm in ARMS.items()}
    text = table(comparison, titles, HYBRID)
    (folder / "table.md").write_text(text + "\n")
    pictures.draw(comparison, per_image, titles, folder / "figures")
    print(text)


def differences(
    ours: list[dict], theirs: list[dict], our_images: list[dict], their_images: list[dict]
) -> dict[str, Difference]:
    """Of every value that both arms have: over test images and seeds where there is one per image, else over seeds."""
    found = {}
    for reported in REPORTED:
        our_values = [reported.of(run) for run in ours]
        their_values = [reported.of(run, is_control=True) for run in theirs]
        if None in our_values + their_values:
            continue
        if reported.per_image is not None and all(reported.per_image in run for run in our_images + their_images):
            rows = (np.stack([run[reported.per_image] for run in of_arm]) for of_arm in (our_images, their_images))
            found[reported.name] = paired_difference(*rows, our_images[0].get("groups"))
        else:
            found[reported.name] = difference_of_runs(our_values, their_values)
    return found
