"""
Mean and spread of the results of several runs, as a Markdown table.

    for seed in 0 1 2; do
        python -m training.pretrain training/configs/digits.yaml seed=$seed output_dir=runs/digits-$seed
    done
    python -m training.summarize runs/digits-0 runs/digits-1 runs/digits-2
"""

import json
import sys
from pathlib import Path

from .command import command, parser_of
from .reports.reported import REPORTED, table


def summarize(folders: list[Path]) -> str:
    """
    A row per value of the model card: mean ± standard deviation (n - 1) over the runs, and the same on raw pixels.

    Raises:
        ValueError: fewer than two runs, a folder without `evaluation.json`, or a seed that appears twice.
    """
    missing = [str(folder) for folder in folders if not (folder / "evaluation.json").exists()]
    if missing or len(folders) < 2:
        what = f"{', '.join(missing)} without evaluation.json" if missing else f"{len(folders)} run(s)"
        raise ValueError(f"Expected the folders of two finished runs or more, got {what}.")
    runs = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"The runs have seeds {seeds}; runs of equal seed say nothing about the spread.")
    rows = [
        [reported.title, *(reported.show([reported.of(run, prefix) for run in runs]) for prefix in ("", "pixel_"))]
        for reported in REPORTED
        if reported.hub_metric is not None and reported.of(runs[0]) is not None
    ]
    head = f"mean ± standard deviation of seeds {', '.join(map(str, sorted(seeds)))}"
    return table([head, "this model", "raw pixels"], rows)


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.summarize", __doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of finished runs")
    print(summarize(parser.parse_args(arguments).folders))


if __name__ == "__main__":
    sys.exit(main())
