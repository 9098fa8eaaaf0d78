"""
Memory of scoring a whole set: features and likelihoods of many 32x32 RGB images of 256 levels, at width 128.

    python -m training.benchmarks.scoring [--num-images 10000] [--threads 2] [--output scoring.json]

    HEAD_mib  Peak memory that scoring adds to a process of its own which holds the model and the images, with what it
              gives back: features, regional means and likelihoods of all of them. Linux only.
"""

import sys

import torch

from modeling_hybrid import HybridForPreTraining

from ..command import command, parser_of
from ..embedding import embed
from ..evaluation.subject import HELD_SUBPIXELS
from .losses import config_of
from .measure import Targets, add_options, added_at_peak, begin, in_fresh_process, table, write


HEADS = ("softmax", "mixture")
TARGETS: Targets = {f"{head}_mib": (0.0, 1e9 / 2**20) for head in HEADS}


def memory(head: str, num_images: int, num_threads: int) -> float:
    """MiB that scoring adds at its peak; in a process of its own."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    config = config_of("cifar10", head).model_config()
    model = HybridForPreTraining(config)
    shape = (num_images, config.num_channels, config.image_size, config.image_size)
    levels = torch.randint(config.num_levels, shape, dtype=torch.uint8)
    return added_at_peak(lambda: embed(model, levels, HELD_SUBPIXELS // config.num_dims))


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.benchmarks.scoring", __doc__)
    add_options(parser, "scoring.json", repeats=1)
    parser.add_argument("--num-images", type=int, default=10_000)
    options = parser.parse_args(arguments)
    settings = begin(options, num_images=options.num_images)
    values = {f"{head}_mib": in_fresh_process(memory, head, options.num_images, options.threads) for head in HEADS}
    print(table(values, TARGETS))
    write(options.output, settings, values)


if __name__ == "__main__":
    sys.exit(main())
