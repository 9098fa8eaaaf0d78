"""
The same model, data and steps with every objective, as a Markdown table of mean and spread over seeds.

    python -m training.compare_objectives [section.key=value ...] [--comparison training/comparison/objectives.yaml]
        [--seeds 3] [--jobs 1] [--only NAME ...] [--output-dir runs/objectives]

Every run is a run of `training.pretrain`, in a folder of its own under the output folder. Runs that are finished are
not repeated, interrupted ones go on. `--jobs` runs share the processor's cores out. The values go to
`objectives.json`, the table of them to `table.md`.
"""

import sys
from pathlib import Path

from .command import add_overrides, command, overrides_of, parser_of, text_of
from .comparison.contest import differences
from .comparison.objectives import COLUMNS, Arm, load_comparison, table, values_of
from .comparison.significance import as_json
from .comparison.sweep import PlannedRun, execute
from .comparison.systems import store


@command
def main(arguments: list[str]) -> int:
    parser = parser_of("training.compare_objectives", __doc__)
    add_overrides(parser)
    default = Path(__file__).parent / "comparison" / "objectives.yaml"
    parser.add_argument("--comparison", type=Path, default=default, help="file that lists the arms")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm, with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these arms only")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/objectives"))
    options = parser.parse_intermixed_args(arguments)

    comparison = load_comparison(options.comparison)
    unknown = set(options.only) - comparison.arms.keys()
    if unknown:
        raise ValueError(f"--only {' '.join(sorted(unknown))}: the arms are {', '.join(comparison.arms)}.")
    chosen = {name: arm for name, arm in comparison.arms.items() if not options.only or name in options.only}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    planned = {
        name: [
            PlannedRun(
                options.comparison.parent / comparison.base,
                (*comparison.overrides, *arm.overrides, *overrides_of(options), f"seed={seed}"),
                options.output_dir / f"{name}-{seed}",
            )
            for seed in range(options.seeds)
        ]
        for name, arm in chosen.items()
    }
    # One seed of every arm first.
    errors = execute([runs[seed] for seed in range(options.seeds) for runs in planned.values()], options.jobs)
    arms, looked_at = {}, {}
    for name, runs in planned.items():
        finished = [run.evaluation() for run in runs if run.is_finished]
        if finished:
            looked_at = {key: finished[0]["looked_at"][key] for key in ("dataset", "split")}
            kept = [{"seed": run["seed"]} | values_of(run) for run in finished]
            arms[name] = {"title": chosen[name].title, "runs": kept} | beside_control(chosen[name], runs, planned)
    if arms:
        command_line = text_of("training.compare_objectives", arguments)
        store(options.output_dir / "objectives.json", command_line, list(range(options.seeds)), arms, **looked_at)
        (options.output_dir / "table.md").write_text(table(arms) + "\n")
        print(table(arms))
    return 1 if errors else 0


def beside_control(arm: Arm, runs: list[PlannedRun], planned: dict[str, list[PlannedRun]]) -> dict:
    """The arm's system and control, and its paired differences from it; nothing before all runs are finished."""
    both = [*runs, *planned.get(arm.control, [])]
    if arm.control not in planned or not all(run.is_finished for run in both):
        return {}
    of_each = [runs, planned[arm.control]]
    evaluations = [[run.evaluation() for run in of_arm] for of_arm in of_each]
    found = differences(*evaluations, *[[run.per_image() for run in of_arm] for of_arm in of_each])
    # Seconds and ranks of a run are no better or worse.
    judged = {column.name: found[column.name] for column in COLUMNS if column.better and column.name in found}
    return {"system": arm.system, "control": arm.control, "minus_control": as_json(judged)}


if __name__ == "__main__":
    sys.exit(main())
