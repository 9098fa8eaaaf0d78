"""
Contrastive alone, generative alone, and both: the claim of this package, put to the test on your own data.

    python -m training.compare training/configs/digits.yaml [section.key=value ...] [--seeds 3]
        [--budget steps|flops|seconds] [--jobs 1] [--grid KEY=V1,V2 ...] [--max-points 5] [--weights .1 .3 1]
        [--arm NAME section.key=value ...] [--output-dir runs/compare/digits]

The arms share backbone, data order and augmentation, but for what `--arm` gives one of them alone. Each is tuned
alike, on the validation split, with seed 0: over the same grid, which widens by itself until the best value lies
inside, or `--max-points` are tried. What was chosen is trained with seeds 1, 2, ... and evaluated by the same code;
these runs alone see the test split. Every run is one of `training.pretrain`, in a folder of its own; finished ones are
not repeated, interrupted ones go on, and budgets share what is equal. Results go to `comparison.json`, `table.md` and
`figures/` in a folder of the budget, `equal_steps/`. Measure equal seconds on a machine that does nothing else.
"""

import sys
from pathlib import Path

from .command import add_overrides, command, overrides_of, parser_of, text_of
from .comparison.arms import ARMS, Contest
from .comparison.budget import BUDGETS
from .comparison.contest import compare


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.compare", __doc__)
    parser.add_argument("config", type=Path, help="configuration of the hybrid")
    add_overrides(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm, with seeds 1, 2, ...")
    parser.add_argument("--budget", choices=BUDGETS, default="steps", help="what is equal")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--grid", nargs="+", default=[], metavar="KEY=V1,V2", help="values to tune every arm over")
    parser.add_argument("--max-points", type=int, help="points that each arm may try; by default two beyond the grid")
    parser.add_argument("--weights", nargs="*", type=float, help="contrastive weights of the Pareto picture")
    parser.add_argument(
        "--arm",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "section.key=value"),
        help=f"values of one arm alone, of {', '.join(ARMS)}: a batch size that suits it, say",
    )
    parser.add_argument("--output-dir", type=Path, help="by default runs/compare/NAME of the configuration")
    options = parser.parse_intermixed_args(arguments)
    contest = Contest(
        config=options.config,
        overrides=overrides_of(options),
        seeds=options.seeds,
        budget=options.budget,
        jobs=options.jobs,
        grid=options.grid,
        max_points=options.max_points,
        weights=options.weights,
        own_overrides={name: own for name, *own in options.arm},
        output_dir=options.output_dir or Path("runs/compare") / options.config.stem,
    )
    compare(contest, text_of("training.compare", arguments))


if __name__ == "__main__":
    sys.exit(main())
