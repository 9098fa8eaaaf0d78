"""
Contrastive alone, generative alone, and both: the claim of this package, put to the test on your own data.

    python -m training.compare training/configs/digits.yaml [--seeds 3] [--budget steps|flops|seconds] [--jobs 1]
        [--grid KEY=V1,V2 ...] [--weights .1 .3 1] [--output-dir runs/compare/digits] [--set section.key=value ...]

The arms share backbone, data order and augmentation. Each is tuned alike: over the same grid, with seed 0; the best on
the validation split is trained with the other seeds. All are evaluated by the same code. Every run is one of
`training.pretrain`, in a folder of its own; finished ones are not repeated, interrupted ones go on. Results go to
`comparison.json`, `table.md` and `figures/`.
"""

import argparse
import itertools
import json
import math
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from modeling_hybrid import HybridForPreTraining

from .augmentation import Views
from .comparison import figures
from .comparison.significance import Difference, difference_of_runs, paired_difference
from .comparison.table import FIGURES, table
from .config import PretrainConfig, load_config
from .separate_moments import separate_gradients
from .sweep import PlannedRun, execute


@dataclass(frozen=True)
class Arm:
    """
    What to train for: overrides of the configuration, and the validation figures that it is tuned by, with the weights
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


def plan(options: argparse.Namespace, name: str, point: Point, num_steps: int, seed: int) -> PlannedRun:
    """The run of an arm at a point of the grid, in a folder that is named after both."""
    overrides = (
        *options.overrides,
        *point,
        # After what is asked for, so that no `--set` or `--grid` gives an arm the loss it is to do without.
        *ARMS[name].overrides,
        f"optimization.num_steps={num_steps}",
        f"seed={seed}",
    )
    values = ",".join(re.sub(r"^.*\.(?=\w+=)", "", override) for override in point)
    return PlannedRun(options.config, overrides, options.output_dir / name / values / f"seed-{seed}")


def tune(name: str, planned: dict[Point, PlannedRun]) -> dict[str, Any]:
    """The points of the grid with the validation figure that the arm is tuned by, and the best of them."""
    weights = ARMS[name].tuned_by
    found = {point: run.evaluation() for point, run in planned.items()}
    scores = {point: sum(weight * run[figure] for figure, weight in weights.items()) for point, run in found.items()}
    points = [{"overrides": list(point), "score": score} for point, score in scores.items()]
    return {"tuned_by": weights, "points": points, "chosen": list(max(scores, key=scores.get))}


def require_success(errors: list[str]) -> None:
    if errors:
        raise ValueError(f"{len(errors)} run(s) failed; mend the cause, and the same command goes on from here.")


def steps_of_equal_budget(options: argparse.Namespace, config: PretrainConfig) -> dict[str, int]:
    """
    Steps of each arm, such that all spend what the hybrid spends in the steps of the configuration: steps, floating
    point operations, or seconds, which are measured on this machine once, before the first run.
    """
    configs = {name: load_config(options.config, [*options.overrides, *arm.overrides]) for name, arm in ARMS.items()}
    measured = options.output_dir / "seconds_per_step.json"
    if options.budget == "seconds" and measured.exists():
        costs = json.loads(measured.read_text())
    else:
        cost = {"steps": lambda config: 1, "flops": flops_per_step, "seconds": seconds_per_step}[options.budget]
        costs = {name: cost(of_arm) for name, of_arm in configs.items()}
    if options.budget == "seconds":
        measured.write_text(json.dumps(costs, indent=2) + "\n")
    return {name: round(config.optimization.num_steps * costs[HYBRID] / cost) for name, cost in costs.items()}


class Step:
    """Forward and backward of a batch of noise, as the training does it: to be measured, not to learn."""

    def __init__(self, config: PretrainConfig):
        self.separate = config.optimization.separate_moments
        num_images = config.optimization.batch_size
        model_config = config.model_config(num_train_images=num_images)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = HybridForPreTraining(model_config).to(device)
        views = Views(config.augmentation, model_config.image_size, model_config.num_levels, with_boxes=True)
        shape = (num_images, model_config.num_channels, model_config.image_size, model_config.image_size)
        self.inputs = views.to(device)(torch.randint(0, model_config.num_levels, shape, dtype=torch.uint8).to(device))
        ids = torch.arange(num_images, device=device)
        self.inputs |= {"sample_ids": ids, "labels": ids % 2}

    def __call__(self) -> None:
        if self.separate:
            separate_gradients(self.model, self.inputs, list(self.model.parameters()))
        else:
            self.model(**self.inputs).loss.backward()


def flops_per_step(config: PretrainConfig) -> float:
    """Floating point operations of the matrix products of a step, forward and backward."""
    step = Step(config)
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def seconds_per_step(config: PretrainConfig, num_repeats: int = 5) -> float:
    step, seconds = Step(config), []
    for _ in range(num_repeats + 1):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def check(options: argparse.Namespace, config: PretrainConfig) -> None:
    """Raise `ValueError` on what would fail only after the first runs."""
    model = config.model_config()
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds} must be at least 1.")
    if config.data.label_column is None:
        raise ValueError("data.label_column is null, but the arms are compared by what classifiers read out of them.")
    if min(model.contrastive_weight, model.generative_weight) == 0:
        raise ValueError(
            f"model.contrastive_weight={model.contrastive_weight} and generative_weight={model.generative_weight} "
            "describe no hybrid; both must be positive."
        )
    if "validation" not in config.evaluation.suite:
        raise ValueError(f"evaluation.suite={config.evaluation.suite} lacks 'validation', which the arms are tuned by.")
    for weight in weights_of(options, config):
        load_config(options.config, [*options.overrides, f"model.contrastive_weight={weight:g}"])


def compare(options: argparse.Namespace, command: str) -> None:
    config = load_config(options.config, options.overrides)
    check(options, config)
    grid, seeds = grid_points(options.grid, config), range(options.seeds)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    num_steps = steps_of_equal_budget(options, config)

    def planned(name: str, point: Point, seed: int) -> PlannedRun:
        return plan(options, name, point, num_steps[name], seed)

    # Seed 0 of every point; where there is one point, it is the choice.
    points = {name: {point: planned(name, point, seed=0) for point in grid} for name in ARMS}
    require_success(execute([run for of_arm in points.values() for run in of_arm.values()], options.jobs))
    tuning = {name: tune(name, of_arm) for name, of_arm in points.items()}
    chosen = {name: tuple(found["chosen"]) for name, found in tuning.items()}
    runs = {name: [planned(name, chosen[name], seed) for seed in seeds] for name in ARMS}
    own_weight = config.model_config().contrastive_weight
    sweep = {own_weight: runs[HYBRID][0]} | {
        weight: planned(HYBRID, (*chosen[HYBRID], f"model.contrastive_weight={weight:g}"), seed=0)
        for weight in weights_of(options, config)
        if weight != own_weight
    }
    # One seed of every arm first, so that a first picture is soon there.
    in_order = [runs[name][seed] for seed in seeds for name in ARMS] + list(sweep.values())
    require_success(execute(list(dict.fromkeys(in_order)), options.jobs))
    write(options, command, runs, sweep, {"equal": options.budget, "num_steps": num_steps, "tuning": tuning})


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


def weights_of(options: argparse.Namespace, config: PretrainConfig) -> list[float]:
    """The weights that are asked for; unset, a third and three times that of the configuration."""
    weight = config.model_config().contrastive_weight
    return [float(f"{weight * factor:.2g}") for factor in (1 / 3, 3)] if options.weights is None else options.weights


def write(
    options: argparse.Namespace,
    command: str,
    runs: dict[str, list[PlannedRun]],
    sweep: dict[float, PlannedRun],
    details: dict,
) -> None:
    """`comparison.json`, `table.md` and the pictures."""
    evaluations = {name: [run.evaluation() for run in of_arm] for name, of_arm in runs.items()}
    per_image = {name: [run.per_image() for run in of_arm] for name, of_arm in runs.items()}
    versus = {
        other: differences(evaluations[HYBRID], evaluations[other], per_image[HYBRID], per_image[other])
        for other in ARMS
        if other != HYBRID
    }
    comparison = {
        "command": command,
        "config": str(options.config),
        "seeds": list(range(options.seeds)),
        "hardware": evaluations[HYBRID][0]["hardware"],
        **details,
        "arms": evaluations,
        "hybrid_minus": {
            # JSON knows no NaN.
            other: {key: {k: v if math.isfinite(v) else None for k, v in asdict(d).items()} for key, d in found.items()}
            for other, found in versus.items()
        },
        "weights": [{"contrastive_weight": weight, **sweep[weight].evaluation()} for weight in sorted(sweep)],
    }
    (options.output_dir / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")
    titles = {name: arm.title for name, arm in ARMS.items()}
    text = table(comparison, titles, HYBRID)
    (options.output_dir / "table.md").write_text(text + "\n")
    figures.draw(comparison, per_image, titles, options.output_dir / "figures")
    print(text)


def differences(
    ours: list[dict], theirs: list[dict], our_images: list[dict], their_images: list[dict]
) -> dict[str, Difference]:
    """Of every figure that both arms have: over test images and seeds where there is a value per image, else seeds."""
    found = {}
    for figure in FIGURES:
        our_values = [figure.of(run) for run in ours]
        their_values = [figure.of(run, is_control=True) for run in theirs]
        if None in our_values + their_values:
            continue
        if figure.per_image is not None and all(figure.per_image in run for run in our_images + their_images):
            rows = (np.stack([run[figure.per_image] for run in of_arm]) for of_arm in (our_images, their_images))
            found[figure.title] = paired_difference(*rows, our_images[0].get("groups"))
        else:
            found[figure.title] = difference_of_runs(our_values, their_values)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m training.compare", description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("config", type=Path, help="configuration of the hybrid")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm, with seeds 0, 1, ...")
    parser.add_argument("--budget", choices=("steps", "flops", "seconds"), default="steps", help="what is equal")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--grid", nargs="+", default=[], metavar="KEY=V1,V2", help="values to tune every arm over")
    parser.add_argument("--weights", nargs="*", type=float, help="contrastive weights of the Pareto picture")
    parser.add_argument("--output-dir", type=Path, help="by default runs/compare/NAME of the configuration")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="for every run")
    options = parser.parse_args(arguments)
    options.output_dir = options.output_dir or Path("runs/compare") / options.config.stem
    try:
        compare(options, " ".join(["python -m training.compare", *arguments]))
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
