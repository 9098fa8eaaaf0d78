"""
The same model, data and steps with every objective, as a Markdown table of mean and spread over seeds.

    python -m training.compare_objectives [training/compare_objectives.yaml] [--seeds 3] [--jobs 1]
        [--only NAME ...] [--output-dir runs/objectives] [--set section.key=value ...]

Every run is a run of `training.pretrain`, in a folder of its own under the output folder. Runs that are finished are
not repeated, interrupted ones go on. `--jobs` runs share the processor's cores out. The table goes to `table.md`.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .sweep import PlannedRun, execute


# Column, key of evaluation.json, digits after the point.
COLUMNS = (
    ("linear", "linear_accuracy", 3),
    ("few-shot", "few_shot_accuracy", 3),
    ("bits/dim", "bits_per_dim", 3),
    ("OOD AUROC", "ood_auroc", 3),
    ("effective rank", "effective_rank", 1),
    ("training seconds", "train_seconds", 0),
)


@dataclass
class Arm:
    """A row of the table: overrides of the base configuration."""

    title: str
    overrides: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """What to compare: the base configuration lies beside the file; `overrides` hold for every arm."""

    base: str
    overrides: list[str] = field(default_factory=list)
    arms: dict[str, Arm] = field(default_factory=dict)


def load_comparison(path: Path) -> Comparison:
    """
    Raises:
        ValueError: the file is not such a tree.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Comparison), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is not a comparison: {error}") from error


def table(titles: dict[str, str], runs: dict[str, list[dict]]) -> str:
    """Mean ± standard deviation (n - 1) over the finished runs of each arm; the best mean of a column is bold."""
    means = {
        key: {name: np.mean([run[key] for run in runs[name]]) for name in runs if all(key in run for run in runs[name])}
        for _, key, _ in COLUMNS
    }
    best = {key: max(means[key].values()) for key in ("linear_accuracy", "few_shot_accuracy", "ood_auroc")}
    best["bits_per_dim"] = min(means["bits_per_dim"].values())

    def cell(name: str, key: str, digits: int) -> str:
        if name not in means[key]:
            return ""
        values = [run[key] for run in runs[name]]
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 and digits else ""
        text = f"{means[key][name]:.{digits}f}"
        bold = f"{best[key]:.{digits}f}" == text if key in best else False
        return (f"**{text}**" if bold else text) + spread

    lines = [
        "| objective | " + " | ".join(column for column, _, _ in COLUMNS) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for name in runs:
        lines.append(f"| {titles[name]} | " + " | ".join(cell(name, key, n) for _, key, n in COLUMNS) + " |")
    return "\n".join(lines)


def compare(options: argparse.Namespace) -> int:
    comparison = load_comparison(options.comparison)
    unknown = set(options.only) - comparison.arms.keys()
    if unknown:
        raise ValueError(f"--only {' '.join(sorted(unknown))}: the arms are {', '.join(comparison.arms)}.")
    chosen = {name: arm for name, arm in comparison.arms.items() if not options.only or name in options.only}
    base = options.comparison.parent / comparison.base
    options.output_dir.mkdir(parents=True, exist_ok=True)
    planned = {
        name: [
            PlannedRun(
                base,
                (*comparison.overrides, *arm.overrides, *options.overrides, f"seed={seed}"),
                options.output_dir / f"{name}-{seed}",
            )
            for seed in range(options.seeds)
        ]
        for name, arm in chosen.items()
    }
    # One seed of every arm first.
    errors = execute([runs[seed] for seed in range(options.seeds) for runs in planned.values()], options.jobs)
    runs = {name: [run.evaluation() for run in runs if run.is_finished] for name, runs in planned.items()}
    runs = {name: finished for name, finished in runs.items() if finished}
    if runs:
        text = table({name: arm.title for name, arm in chosen.items()}, runs)
        (options.output_dir / "table.md").write_text(text + "\n")
        print(text)
    return 1 if errors else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m training.compare_objectives", description=__doc__.split("\n\n")[0].strip()
    )
    default = Path(__file__).with_suffix(".yaml")
    parser.add_argument("comparison", nargs="?", type=Path, default=default, help="file that lists the arms")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm, with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these arms only")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="for every run")
    options = parser.parse_args(arguments)
    try:
        return compare(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
