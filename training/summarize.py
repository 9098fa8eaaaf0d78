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

import numpy as np

from .model_card import REPORTED


def summarize(folders: list[Path]) -> str:
    """
    A row per figure of the model card: mean ± standard deviation (n - 1) over the runs, and the same on raw pixels.

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

    def cell(key: str | None) -> str:
        if key is None or key not in runs[0]:
            return ""
        values = [run[key] for run in runs]
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"

    rows = [f"| {title} | {cell(key)} | {cell(pixel_key)} |" for title, key, pixel_key, _ in REPORTED if key in runs[0]]
    head = f"| mean ± standard deviation of seeds {', '.join(map(str, sorted(seeds)))} | this model | raw pixels |"
    return "\n".join([head, "|---|---|---|", *rows])


def main(arguments: list[str]) -> int:
    try:
        print(summarize([Path(argument) for argument in arguments]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
