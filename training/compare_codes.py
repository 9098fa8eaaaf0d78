"""
What is read from the two codes of SepCLR, beside the undivided projections of other runs on the same data.

    python -m training.compare_codes runs/codes/sep_clr-0 ... --controls runs/codes/info_nce-0 ...
        [--common-column common] [--output FILE]

The label of a run's data tells what only the targets have (its class `background` none), `--common-column` what all
images have. Linear probes read each from its code and, as a leak, from the other one, on the test split: of targets
alone for what only they have. Values and paired differences go to a file of the form of `objectives.json`.
"""

import sys
from dataclasses import replace
from pathlib import Path

from .command import command, parser_of, text_of


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.compare_codes", __doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished runs of sep_clr, of different seeds")
    parser.add_argument("--controls", nargs="+", type=Path, required=True, help="as many others, of the same seeds")
    parser.add_argument("--common-column", default="common", help="column of the data with what all images have")
    parser.add_argument("--output", type=Path, default=Path("runs/codes.json"))
    options = parser.parse_args(arguments)

    from .comparison.codes import arms, codes_of
    from .comparison.systems import store
    from .config import load_config

    configs = [[load_config(folder / "config.yaml") for folder in part] for part in (options.folders, options.controls)]
    seeds = [[config.seed for config in part] for part in configs]
    if seeds[0] != seeds[1] or len(set(seeds[0])) < len(seeds[0]):
        raise ValueError(f"The runs have seeds {seeds[0]}, their controls {seeds[1]}; give the same ones, each once.")
    data = replace(configs[0][0].data, label_column=None)
    if any(replace(config.data, label_column=None) != data for part in configs for config in part):
        raise ValueError("The runs do not have the same section 'data'; compare those of one data set.")
    found = [
        [codes_of(folder, config, options.common_column) for folder, config in zip(part, of_part, strict=True)]
        for part, of_part in zip((options.folders, options.controls), configs, strict=True)
    ]
    judged = arms(*found, seeds[0])
    command_line = text_of("training.compare_codes", arguments)
    store(options.output, command_line, seeds[0], judged, Path(data.dataset).name)
    for arm in judged.values():
        for run in arm["runs"]:
            print(f"{arm['title']}: " + ", ".join(f"{key} {value:.4g}" for key, value in run.items()))
    print(f"The values are in {options.output}.")


if __name__ == "__main__":
    sys.exit(main())
