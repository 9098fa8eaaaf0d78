"""
Datasets: load -> check -> split -> levels.

Every image is converted and resized once, by the model's image processor, and kept as a row of bytes (its levels, C
then H then W) in an Arrow table that is memory-mapped from disk; streams are converted on the way.
"""

import io
import logging
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from torch.utils.data import Dataset as TorchDataset

from modeling_hybrid import HybridConfig, HybridImageProcessor

from .config import DataConfig


logger = logging.getLogger(__name__)
DIGITS = "digits"
# `datasets.load_dataset` raises these on what it cannot find, reach or read.
_LOADING_ERRORS = (OSError, TypeError, ValueError, datasets.exceptions.DatasetsError)
# Beside `datasets.Image`: paths, or the bytes of image files.
_IMAGE_DTYPES = ("string", "large_string", "binary", "large_binary")
# Converting fewer images than this takes a second or two, which needs no progress bar.
_MANY_IMAGES = 5_000


def rows_to_levels(rows: list[bytes], shape: tuple[int, int, int]) -> torch.Tensor:
    """Rows of bytes -> levels (N, C, H, W), uint8."""
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, *shape)


def evenly(num_images: int, max_images: int) -> np.ndarray:
    """Indices of all images, or of `max_images` (0: all) at even distances: files often come sorted by class."""
    return np.linspace(0, num_images - 1, min(num_images, max_images or num_images)).round().astype(int)


class LevelsDataset(TorchDataset):
    """Levels (C, H, W), uint8, of a split; a batch of indices is fetched in one go."""

    def __init__(self, table: datasets.Dataset, shape: tuple[int, int, int]):
        self.table = table
        self.shape = shape

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return rows_to_levels(self.table[indices]["levels"], self.shape)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def all_levels(self, max_images: int = 0) -> torch.Tensor:
        """All levels (N, C, H, W), or those of `max_images` images."""
        return self.__getitems__(evenly(len(self), max_images).tolist())

    def labels(self, max_images: int = 0) -> np.ndarray | None:
        """Integer labels (N,) of the images of `all_levels`, or `None` where the data has none."""
        if "label" not in self.table.column_names:
            return None
        return np.array(self.table["label"][:])[evenly(len(self), max_images)]

    def groups(self, max_images: int = 0) -> np.ndarray | None:
        """Group of each image of `all_levels` as an integer (N,), or `None` where the data has no groups."""
        if "group" not in self.table.column_names:
            return None
        return np.unique(self.table["group"][:], return_inverse=True)[1][evenly(len(self), max_images)]


class ToLevels:
    """
    A batch of undecoded images -> their levels as bytes, or why an image could not be read.

    Called by `datasets`' `map`; holds plain values only, so that the map's cache recognises it.
    """

    def __init__(self, image_processor: HybridImageProcessor):
        self.image_processor = image_processor

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        converted = [self.convert(image, f"row {index}") for image, index in zip(batch["image"], indices, strict=True)]
        return {"levels": [levels for levels, _ in converted], "error": [error for _, error in converted]}

    def convert(self, image: dict | None, name: str) -> tuple[bytes, str | None]:
        """The levels of an image and no error; or none, and an error that names the file (`name`, if it has none)."""
        try:
            return self._levels(image), None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return b"", f"{(image or {}).get('path') or name}: {error}"

    def _levels(self, image: dict | None) -> bytes:
        if image is None:
            raise ValueError("the row has no image")
        source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
        with Image.open(source) as opened:
            upright = ImageOps.exif_transpose(opened)
            pixel_values = self.image_processor(upright, return_tensors="pt").pixel_values[0]
        levels = (pixel_values + 1) * ((self.image_processor.num_levels - 1) / 2)
        return levels.round().to(torch.uint8).numpy().tobytes()


@dataclass
class ImageStream:
    """Undecoded images (column `image`) that are read in order, converted on the way and never held at once."""

    rows: datasets.IterableDataset
    converter: ToLevels
    shape: tuple[int, int, int]
    shuffle_buffer: int
    max_unreadable_share: float


@dataclass
class Splits:
    """
    `train` is a `LevelsDataset` or, streamed, an `ImageStream`. `reference` are the training images that probes and
    statistics are fitted on: all of them, or the first of a stream. Either every split has labels, or none.
    """

    train: LevelsDataset | ImageStream
    reference: LevelsDataset
    validation: LevelsDataset
    test: LevelsDataset
    shape: tuple[int, int, int]
    class_names: list[str] | None = None


def load_splits(config: DataConfig, model: HybridConfig, max_streamed: int) -> Splits:
    """
    Training, validation and test images as levels.

    Args:
        model: the sizes and levels that images are converted to.
        max_streamed: how many images of each split of a stream are kept for the evaluation; where a stream has no
            validation split, its first `max_streamed` images become one and are not trained on.

    Raises:
        ValueError: a dataset that is empty, has no such split or column, or has more unreadable images than
            `config.max_unreadable_share`.
    """
    converter = ToLevels(HybridImageProcessor.from_config(model))
    shape = (model.num_channels, model.image_size, model.image_size)
    raw = {name: _select(rows, config) for name, rows in _load(config).items()}
    stream = raw["train"]
    if config.streaming:
        if "validation" not in raw:
            raw["validation"], stream = stream.take(max_streamed), stream.skip(max_streamed)
        raw["train"] = stream
        raw = {name: _first_rows(rows, max_streamed) for name, rows in raw.items()}
        if len(raw["train"]) == 0 and len(raw["validation"]) > 0:
            raise ValueError(
                f"The stream of data.dataset={config.dataset!r} ends with its first {len(raw['validation'])} images, "
                "which become the validation split; lower evaluation.max_images, or name a data.validation_split."
            )

    tables = {name: _to_table(rows, converter, config) for name, rows in raw.items()}
    if "validation" not in tables:
        tables["train"], tables["validation"] = _split(tables["train"], config)
    if "test" not in tables:
        logger.warning("No test split: the final evaluation reports the validation split.")
        tables["test"] = tables["validation"]
    tables, class_names = _encode_labels(tables, config)

    reference, validation, test = (LevelsDataset(tables[name], shape) for name in ("train", "validation", "test"))
    train = reference
    if config.streaming:
        train = ImageStream(stream, converter, shape, config.shuffle_buffer, config.max_unreadable_share)
    return Splits(train, reference, validation, test, shape, class_names)


def digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 digits, 8x8 with 17 levels, a stratified fifth of them for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in bunch.target_names])}
    )
    table = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in images], "label": bunch.target.tolist()}, features=features
    )
    return table.train_test_split(test_size=0.2, stratify_by_column="label", seed=0)


def _load(config: DataConfig) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """The splits that are asked for under the names train, validation and test; test may be missing."""
    if config.dataset == DIGITS:
        existing = digits()
        if config.streaming:
            existing = {name: rows.to_iterable_dataset() for name, rows in existing.items()}
    else:
        existing = _load_dataset(config)
    if not isinstance(existing, dict):
        raise ValueError(
            f"data.arguments={config.arguments} choose one split; name the splits by data.train_split, "
            "data.validation_split and data.test_split instead."
        )
    wanted = {"train": config.train_split, "validation": config.validation_split, "test": config.test_split}
    raw = {}
    for name, split in wanted.items():
        if split in existing:
            raw[name] = existing[split]
        elif split is not None and set(split) & set("[+"):  # an expression of `datasets`, such as train[:80%]
            raw[name] = _load_dataset(config, split=split)
        elif split is not None and name != "test":
            raise ValueError(
                f"data.{name}_split={split!r} is not a split of data.dataset={config.dataset!r}, which has: "
                f"{', '.join(existing)}."
            )
    return raw


def _load_dataset(config: DataConfig, **arguments):
    try:
        return datasets.load_dataset(config.dataset, streaming=config.streaming, **config.arguments, **arguments)
    except _LOADING_ERRORS as error:
        raise ValueError(
            f"data.dataset={config.dataset!r} with data.arguments={config.arguments} cannot be loaded: {error}"
        ) from error


def _select(raw: datasets.Dataset | datasets.IterableDataset, config: DataConfig):
    """The columns that are used, under the names image (undecoded), label and group."""
    columns = raw.column_names or list(next(iter(raw), {}))
    named = {"image": config.image_column, "label": config.label_column, "group": config.group_column}
    for name in ("image", "group"):
        if named[name] is not None and named[name] not in columns:
            raise ValueError(
                f"data.{name}_column={named[name]!r} is not a column of the dataset, which has: {', '.join(columns)}."
            )
    feature = (raw.features or {}).get(config.image_column)
    if not (feature is None or isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in _IMAGE_DTYPES):
        raise ValueError(
            f"data.image_column={config.image_column!r} holds {feature}, which is not read as images; give encoded "
            "images, or paths of image files."
        )
    raw = raw.select_columns([column for column in named.values() if column in columns])
    # Undecoded before all else: what comes after would decode every image, and fail on the first broken one.
    raw = raw.cast_column(config.image_column, datasets.Image(decode=False))
    renamed = {column: name for name, column in named.items() if column in columns and column != name}
    return raw.rename_columns(renamed) if renamed else raw


def _first_rows(stream: datasets.IterableDataset, num_rows: int) -> datasets.Dataset:
    rows = list(stream.take(num_rows))
    return datasets.Dataset.from_list(rows, features=stream.features if rows else None)


def _to_table(raw: datasets.Dataset, converter: ToLevels, config: DataConfig) -> datasets.Dataset:
    """Column `image` becomes `levels`; unreadable images are named and left out."""
    if len(raw) == 0:
        raise ValueError(f"A split of data.dataset={config.dataset!r} holds no image.")
    if len(raw) < _MANY_IMAGES:
        datasets.disable_progress_bars()
    else:
        datasets.enable_progress_bars()
    table = raw.map(
        converter,
        with_indices=True,
        batched=True,
        batch_size=256,
        remove_columns="image",
        num_proc=config.num_workers or None,
        desc="Converting images",
    )
    errors = table["error"][:]
    unreadable = [error for error in errors if error is not None]
    if unreadable:
        named = "\n  ".join(unreadable[:20]) + ("\n  ..." if len(unreadable) > 20 else "")
        message = f"{len(unreadable)} of {len(table)} images cannot be read:\n  {named}"
        if len(unreadable) > config.max_unreadable_share * len(table):
            raise ValueError(
                f"{message}\nThat is more than data.max_unreadable_share={config.max_unreadable_share}; mend the "
                "files, or raise the share."
            )
        logger.warning("%s\nThey are skipped.", message)
        table = table.select([i for i, error in enumerate(errors) if error is None])
        if len(table) == 0:
            raise ValueError(f"No image of a split of data.dataset={config.dataset!r} can be read.")
    return table.remove_columns("error")


def _split(table: datasets.Dataset, config: DataConfig) -> tuple[datasets.Dataset, datasets.Dataset]:
    """A training and a validation part: by group where there are groups, else stratified where labels allow it."""
    indices = np.arange(len(table))
    arguments = {"test_size": config.validation_fraction, "random_state": config.split_seed}
    try:
        if "group" in table.column_names:
            train, validation = next(GroupShuffleSplit(1, **arguments).split(indices, groups=table["group"][:]))
        else:
            labels = table["label"][:] if "label" in table.column_names else None
            try:
                train, validation = train_test_split(indices, stratify=labels, **arguments)
            except (TypeError, ValueError):  # a class with a single image, say, or labels that are missing
                train, validation = train_test_split(indices, **arguments)
    except ValueError as error:
        raise ValueError(
            f"{len(table)} images (data.group_column={config.group_column!r}) cannot be split into training and "
            f"data.validation_fraction={config.validation_fraction}: {error}"
        ) from error
    return table.select(np.sort(train)), table.select(np.sort(validation))


def _encode_labels(
    tables: dict[str, datasets.Dataset], config: DataConfig
) -> tuple[dict[str, datasets.Dataset], list[str] | None]:
    """
    Labels of any type -> integers that mean the same class in every split, and the names of the classes.

    Labels are dropped where the probes cannot use them: one is missing, or there are fewer than two classes.
    """
    if not all("label" in table.column_names for table in tables.values()):
        if config.label_column is not None:
            logger.warning(
                "data.label_column=%r is not a column of every split. The probes, which need labels, are skipped.",
                config.label_column,
            )
        return {name: _without_labels(table) for name, table in tables.items()}, None
    values = {name: _class_values(table, config) for name, table in tables.items()}
    classes = {value for split in values.values() for value in split}
    if None in classes or len(set(values["train"])) < 2:
        logger.warning(
            "data.label_column=%r: %s. The probes, which need labels, are skipped.",
            config.label_column,
            "some images have no label" if None in classes else "the training images are all of one class",
        )
        return {name: _without_labels(table) for name, table in tables.items()}, None

    orders = [getattr(table.features["label"], "names", None) for table in tables.values()]
    if orders[0] is not None and all(order == orders[0] for order in orders):
        return tables, orders[0]
    names = sorted(classes)
    number = {value: i for i, value in enumerate(names)}
    tables = {
        name: _without_labels(table).add_column("label", [number[value] for value in values[name]])
        for name, table in tables.items()
    }
    return tables, [str(name) for name in names]


def _class_values(table: datasets.Dataset, config: DataConfig) -> list:
    """The label of each image as it is called: the name of a `ClassLabel`, else the value; `None` where missing."""
    feature, labels = table.features["label"], table["label"][:]
    if isinstance(feature, datasets.ClassLabel):
        # Datasets of the Hub mark the labels that a test split withholds by -1.
        return [None if label is None or label < 0 else feature.names[label] for label in labels]
    if not isinstance(feature, datasets.Value):
        raise ValueError(
            f"data.label_column={config.label_column!r} holds {feature}, not one class per image; name another column, "
            "or null for none."
        )
    return labels


def _without_labels(table: datasets.Dataset) -> datasets.Dataset:
    return table.remove_columns("label") if "label" in table.column_names else table
