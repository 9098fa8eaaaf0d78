"""
Two values of the same runs beside each other, with the interval of their difference over seeds.

    python -m training.compare_values runs/systems/info_nce-0 runs/systems/info_nce-1 runs/systems/info_nce-2
        --system opta --pairs transductive_1_shot_accuracy=episode_1_shot_accuracy ... [--output FILE]

Each pair is VALUE=CONTROL, two keys of `evaluation.json`, and a row of the table. What comes out goes to a file of the
form of `objectives.json`.
"""

import json
import sys
from pathlib import Path

from .command import command, parser_of, text_of


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.compare_values", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished runs, of different seeds")
    parser.add_argument("--system", required=True, help="name in the table of systems")
    parser.add_argument("--pairs", nargs="+", required=True, metavar="VALUE=CONTROL")
    parser.add_argument("--output", type=Path, default=Path("runs/values.json"))
    options = parser.parse_args(arguments)

    from .comparison.significance import as_json, difference_of_runs
    from .comparison.systems import SYSTEMS, store

    if options.system not in SYSTEMS:
        raise ValueError(f"--system {options.system}: the systems are {', '.join(SYSTEMS)}.")
    runs = [json.loads((folder / "evaluation.json").read_text()) for folder in options.folders]
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"The runs have seeds {seeds}; runs of equal seed say nothing about the spread.")

    def values(key: str) -> list[float]:
        if missing := [str(folder) for folder, run in zip(options.folders, runs, strict=True) if key not in run]:
            raise ValueError(f"There is no {key!r} in the evaluation.json of {', '.join(missing)}.")
        return [run[key] for run in runs]

    arms = {}
    for pair in options.pairs:
        ours, separator, control = pair.partition("=")
        if not separator:
            raise ValueError(f"--pairs {pair!r} is not of the form VALUE=CONTROL.")
        found = {ours: difference_of_runs(values(ours), values(control))}
        for name, key in ((pair, ours), (control, control)):
            kept = [{"seed": seed, key: value} for seed, value in zip(seeds, values(key), strict=True)]
            arms[name] = {"title": key.replace("_", " "), "runs": kept}
        arms[pair] |= {"system": options.system, "control": control, "minus_control": as_json(found)}
    looked_at = {key: runs[0]["looked_at"][key] for key in ("dataset", "split")}
    store(options.output, text_of("training.compare_values", arguments), seeds, arms, **looked_at)
    print(f"The values are in {options.output}.")


if __name__ == "__main__":
    sys.exit(main())
