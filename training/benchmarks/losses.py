"""
What the likelihood costs: a step of both losses beside a step of the contrastive loss alone.

    python -m training.benchmarks.losses [--threads 2] [--repeats 5] [--only NAME ...] [--output losses.json]

Shapes are those of the recipes, and of CIFAR-10 at a width that a CPU can train. Images are noise; views, batch and
backbone are equal. A step is views, forward, backward and the optimizers. The contrastive arm is that of
`training.compare`: no likelihood, bidirectional attention, one optimizer; the others are [`VARIANTS`] of the recipe.
All take turns, after a warm-up.

    SHAPE_VARIANT_s         Median seconds of a step.
    SHAPE_VARIANT_ratio     The same over those of the contrastive step.
    SHAPE_VARIANT_gflops    Floating point operations of the matrix products of a step, forward and backward, in 10^9.
    SHAPE_VARIANT_share     Seconds that those products alone take, each by itself on matrices of its shape in the same
                            process with as many threads, as a share of the seconds of the step: how near it is to what
                            the machine reaches.
"""

import sys
from pathlib import Path

import torch

from ..command import command, parser_of
from ..comparison.arms import ARMS
from ..comparison.budget import Step
from ..comparison.matrix_products import MatrixProducts
from ..config import PretrainConfig, load_config
from .measure import Targets, add_options, begin, interleaved, table, write


CONFIGS = Path(__file__).parents[1] / "configs"
# Shape -> configuration file and overrides.
SHAPES: dict[str, tuple[str, list[str]]] = {
    "digits": ("digits.yaml", []),
    "glyphs": ("../comparison/font_glyphs_28.yaml", []),
    "emoji": ("noto_emoji_32.yaml", []),
    "cifar10": ("noto_emoji_32.yaml", ["model.num_levels=256", "model.patch_size=4", "model.hidden_size=128"]),
}
MIXTURE = ["model.code_distribution=logistic_mixture", "model.depth_hidden_size=32"]
QUARTER = ["model.generative_share=0.25", "model.num_generative_views=1"]  # of the clean images
CONTRASTIVE = "contrastive"
VARIANTS: dict[str, list[str]] = {
    CONTRASTIVE: list(ARMS[CONTRASTIVE].overrides),
    "softmax": ["model.code_distribution=softmax", "model.generative_share=1"],
    "softmax_quarter": ["model.code_distribution=softmax", *QUARTER],
    "mixture": [*MIXTURE, "model.generative_share=1"],
    "mixture_quarter": [*MIXTURE, *QUARTER],
}
TARGETS: Targets = {f"{shape}_mixture_quarter_ratio": (0.0, 1.25) for shape in ("digits", "glyphs", "cifar10")}
TARGETS["cifar10_mixture_quarter_share"] = (0.6, torch.inf)


def config_of(shape: str, variant: str) -> PretrainConfig:
    file, overrides = SHAPES[shape]
    return load_config(CONFIGS / file, ["data.dataset=digits", *overrides, *VARIANTS[variant]])


def step(shape: str, variant: str) -> Step:
    return Step(config_of(shape, variant))


def compare(shape: str, repeats: int) -> dict[str, float]:
    steps = {name: step(shape, name) for name in VARIANTS}
    medians, values = interleaved(steps, repeats), {}
    for name, seconds in medians.items():
        with MatrixProducts() as products:
            steps[name]()
        values |= {
            f"{shape}_{name}_s": seconds,
            f"{shape}_{name}_ratio": seconds / medians[CONTRASTIVE],
            f"{shape}_{name}_gflops": products.flops() / 1e9,
            f"{shape}_{name}_share": products.seconds() / seconds,
        }
    return values


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.benchmarks.losses", __doc__)
    add_options(parser, output="losses.json", repeats=5)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args(arguments)
    settings, values = begin(options), {}
    for shape in options.only:
        print(shape, flush=True)
        values |= compare(shape, options.repeats)
    print(table(values, TARGETS))
    write(options.output, settings, values)


if __name__ == "__main__":
    sys.exit(main())
