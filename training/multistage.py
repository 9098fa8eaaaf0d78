"""
Multistage contrastive learning (MCL): each stage goes on from the one before, its batches from clusters of features.

    python -m training.multistage training/configs/digits.yaml [section.key=value ...] [--num-stages 2]
        [--num-clusters 3 1] [--seeds 3] [--output-dir runs/multistage]

Every stage is a run of `training.pretrain` of its own. The joined features of all stages are judged by probes on the
test split, for each number of clusters, beside the single cluster, which is plain training: `multistage.json`, a file
of the form of `objectives.json`. What is finished is not repeated, what was interrupted goes on.
"""

import sys
from pathlib import Path

from .command import add_overrides, command, overrides_of, parser_of, text_of


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.multistage", __doc__)
    parser.add_argument("config", type=Path, help="configuration of each stage")
    add_overrides(parser)
    parser.add_argument("--num-stages", type=int, default=2, help="the first of them without clusters")
    parser.add_argument("--num-clusters", type=int, nargs="+", default=[3, 1], help="of each cluster of a stage before")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/multistage"))
    options = parser.parse_intermixed_args(arguments)

    from .comparison.multistage import Multistage
    from .comparison.systems import store

    for name, least in (("num_clusters", min(options.num_clusters)), ("seeds", options.seeds)):
        if least < 1:
            raise ValueError(f"--{name.replace('_', '-')} {least} must be at least 1.")
    multistage = Multistage(options.config, overrides_of(options), options.num_stages, options.output_dir)
    seeds = list(range(options.seeds))
    path = options.output_dir / "multistage.json"
    arms = multistage.contest(options.num_clusters, seeds)
    split = "test" if multistage.splits.has_test else "validation"
    store(path, text_of("training.multistage", arguments), seeds, arms, multistage.data.dataset, split)
    print(f"The values are in {path}.")


if __name__ == "__main__":
    sys.exit(main())
