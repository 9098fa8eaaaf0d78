"""
The same model, data and steps with every objective, as a Markdown table of mean and spread over seeds.

    python -m training.compare_objectives [section.key=value ...] [--comparison training/comparison/objectives.yaml]
        [--seeds 3] [--jobs 1] [--only NAME ...] [--output-dir runs/objectives]

Every run is a run of `training.pretrain`, in a folder of its own under the output folder. Runs that are finished are
not repeated, interrupted ones go on. `--jobs` runs share the processor's cores out. The values go to
`objectives.json`, the table of them to `table.md`.

An arm that names its control is judged beside it at equal steps; and where a step of it takes longer, beside so many
more steps of the control as take as long (equal seconds).
"""

import sys
from pathlib import Path

from .command import add_overrides, command, overrides_of, parser_of, text_of
from .comparison.budget import step_ratio
from .comparison.contest import differences
from .comparison.objectives import COLUMNS, Arm, load_comparison, table, values_of
from .comparison.significance import as_json
from .comparison.sweep import PlannedRun, execute
from .comparison.systems import store


# A control gets more steps where a step of the arm takes longer than this many of its own.
LONGER = 1.05


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

    def runs_of(name: str, folder: str, *further: str) -> list[PlannedRun]:
        overrides = (*comparison.overrides, *comparison.arms[name].overrides, *overrides_of(options), *further)
        base = options.comparison.parent / comparison.base
        folders = [options.output_dir / f"{folder}-{seed}" for seed in range(options.seeds)]
        return [PlannedRun(base, (*overrides, f"seed={seed}"), folders[seed]) for seed in range(options.seeds)]

    planned = {name: runs_of(name, name) for name in chosen}
    ratios, longer = {}, {}
    for name, arm in chosen.items():
        if arm.control in planned:
            ours, control = (planned[one][0].load_config() for one in (name, arm.control))
            ratios[name] = step_ratio(ours, control, options.jobs, options.output_dir / f"{name}-seconds.json")
            if ratios[name] > LONGER:
                num_steps = round(control.optimization.num_steps * ratios[name])
                of_steps = f"optimization.num_steps={num_steps}"
                longer[name] = runs_of(arm.control, f"{arm.control}-{num_steps}-steps", of_steps)
    # One seed of every arm first; equal runs are one.
    every = [*planned.values(), *longer.values()]
    in_order = dict.fromkeys(runs[seed] for seed in range(options.seeds) for runs in every)
    errors = execute(list(in_order), options.jobs)
    arms, looked_at = {}, {}
    for name, runs in planned.items():
        finished = [run.evaluation() for run in runs if run.is_finished]
        if finished:
            looked_at = {key: finished[0]["looked_at"][key] for key in ("dataset", "split")}
            kept = [{"seed": run["seed"]} | values_of(run) for run in finished]
            arms[name] = {"title": chosen[name].title, "runs": kept}
            if name in ratios:
                controls = planned[chosen[name].control]
                arms[name] |= beside_control(chosen[name], ratios[name], runs, controls, longer.get(name, []))
    if arms:
        command_line = text_of("training.compare_objectives", arguments)
        store(options.output_dir / "objectives.json", command_line, list(range(options.seeds)), arms, **looked_at)
        (options.output_dir / "table.md").write_text(table(arms) + "\n")
        print(table(arms))
    return 1 if errors else 0


def beside_control(
    arm: Arm, ratio: float, runs: list[PlannedRun], controls: list[PlannedRun], longer: list[PlannedRun]
) -> dict:
    """
    The arm's system and control, its paired differences from it, the ratio of the seconds of their steps, and the
    differences from `longer` runs of the control where there are any; nothing before all runs are finished.
    """
    if not all(run.is_finished for run in [*runs, *controls, *longer]):
        return {}
    found = {"system": arm.system, "control": arm.control, "step_ratio": ratio, "minus_control": minus(runs, controls)}
    if longer:
        num_steps = longer[0].load_config().optimization.num_steps
        found["at_equal_seconds"] = {"num_steps": num_steps, "minus_control": minus(runs, longer)}
    return found


def minus(runs: list[PlannedRun], controls: list[PlannedRun]) -> dict[str, dict[str, float | None]]:
    """The paired differences of finished runs, as JSON takes them."""
    of_each = runs, controls
    evaluations = [[run.evaluation() for run in of_arm] for of_arm in of_each]
    found = differences(*evaluations, *[[run.per_image() for run in of_arm] for of_arm in of_each])
    # Seconds and ranks of a run are no better or worse.
    return as_json({column.name: found[column.name] for column in COLUMNS if column.better and column.name in found})


if __name__ == "__main__":
    sys.exit(main())
