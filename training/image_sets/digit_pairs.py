"""
Builds digit_pairs: a digit of scikit-learn on the left, 16x16 grey, and on half of the images another one on the right.

    python -m training.image_sets.digit_pairs

Without a network. Images with one digit are the background of `sep_clr`, those with two its targets.
"""

import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from ..command import command, parser_of
from ..data.splits import digits
from .common import write_image_set


IMAGE_SIZE = 16
PUBLISHED = "291bb1f6aa7ced58c078271792ba0c2b32163fa68cc4ebbb572c1a3ef4575a7e"
DIGITS = [str(digit) for digit in range(10)]
COLUMNS = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["none", *DIGITS]),
        "common": datasets.ClassLabel(names=DIGITS),
    }
)


def pairs(table: datasets.Dataset, seed: int) -> list[dict]:
    """One row per digit of `table`, in its order; half of them, drawn at random, have a drawn one beside them."""
    generator = np.random.default_rng(seed)
    has_two, partner = generator.permutation(len(table)) % 2 == 0, generator.integers(len(table), size=len(table))
    rows = []
    for i, left in enumerate(table):
        image, right = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE)), table[int(partner[i])] if has_two[i] else None
        for x, digit in ((0, left), (8, right)):
            if digit is not None:
                image.paste(digit["image"], (x, 4))
        rows.append({"image": image, "label": 0 if right is None else right["label"] + 1, "common": left["label"]})
    return rows


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.image_sets.digit_pairs", __doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("data/digit_pairs"))
    options = parser.parse_args(arguments)
    splits = {name: pairs(table, seed) for seed, (name, table) in enumerate(digits().items())}
    write_image_set(splits, COLUMNS, options.output_dir, Path(__file__).with_suffix(".md"), PUBLISHED)


if __name__ == "__main__":
    sys.exit(main())
