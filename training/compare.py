"""
Contrastive alone, generative alone, and both: the claim of this package, put to the test on your own data.

    python -m training.compare training/configs/digits.yaml [section.key=value ...] [--seeds 3]
        [--budget steps|flops|seconds] [--jobs 1] [--grid KEY=V1,V2 ...] [--weights .1 .3 1]
        [--output-dir runs/compare/digits]

The arms share backbone, data order and augmentation. Each is tuned alike: over the same grid, with seed 0; the best on
the validation split is trained with the other seeds. All are evaluated by the same code. Every run is one of
`training.pretrain`, in a folder of its own; finished ones are not repeated, interrupted ones go on. Results go to
`comparison.json`, `table.md` and `figures/`.
"""

import sys
from pathlib import Path

from .command import add_overrides, command, overrides_of, parser_of, text_of
from .comparison.arms import Contest
from .comparison.contest import compare


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.compare", __doc__)
    parser.add_argument("config", type=Path, help="configuration of the hybrid")
    add_overrides(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm, with seeds 0, 1, ...")
    parser.add_argument("--budget", choices=("steps", "flops", "seconds"), default="steps", help="what is equal")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--grid", nargs="+", default=[], metavar="KEY=V1,V2", help="values to tune every arm over")
    parser.add_argument("--weights", nargs="*", type=float, help="contrastive weights of the Pareto picture")
    parser.add_argument("--output-dir", type=Path, help="by default runs/compare/NAME of the configuration")
    options = parser.parse_intermixed_args(arguments)
    contest = Contest(
        config=options.config,
        overrides=overrides_of(options),
        seeds=options.seeds,
        budget=options.budget,
        jobs=options.jobs,
        grid=options.grid,
        weights=options.weights,
        output_dir=options.output_dir or Path("runs/compare") / options.config.stem,
    )
    compare(contest, text_of("training.compare", arguments))


if __name__ == "__main__":
    sys.exit(main())
