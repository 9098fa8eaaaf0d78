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
from PIL import Image
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from torch.utils.data import Dataset as TorchDataset

from modeling_hybrid import HybridConfig, HybridImageProcessor

from .config import DataConfig


logger = logging.getLogger(__name__)
DIGITS = "digits"


def rows_to_levels(rows: list[bytes], shape: tuple[int, int, int]) -> torch.Tensor:
    """Rows of bytes -> levels (N, C, H, W), uint8."""
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, *shape)


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
        """All levels (N, C, H, W), or the first `max_images` of them."""
        return self.__getitems__(list(range(min(len(self), max_images or len(self)))))

    def labels(self, max_images: int = 0) -> np.ndarray | None:
        """Integer labels (N,), or `None` where the data has none."""
        if "label" not in self.table.column_names:
            return None
        return np.array(self.table["label"][: max_images or len(self)])


@dataclass
class Splits:
    """
    `train` is a `LevelsDataset` or, streamed, a `datasets.IterableDataset`. `reference` are the training images that
    probes and statistics are fitted on: all of them, or the first of a stream.
    """

    train: LevelsDataset | datasets.IterableDataset
    reference: LevelsDataset
    validation: LevelsDataset
    test: LevelsDataset
    shape: tuple[int, int, int]
    class_names: list[str] | None = None


class ToLevels:
    """
    A batch of undecoded images -> their levels as bytes, or why an image could not be read.

    Called by `datasets`' `map`; holds plain values only, so that the map's cache recognises it.
    """

    def __init__(self, image_processor: HybridImageProcessor, image_column: str):
        self.image_processor = image_processor
        self.image_column = image_column

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        levels, errors = [], []
        for image, index in zip(batch[self.image_column], indices, strict=True):
            try:
                levels.append(self.convert(image))
                errors.append(None)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                name = (image.get("path") if isinstance(image, dict) else None) or f"row {index}"
                levels.append(b"")
                errors.append(f"{name}: {error}")
        return {"levels": levels, "error": errors}

    def convert(self, image: dict) -> bytes:
        if image is None:
            raise ValueError("the row has no image")
        source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
        with Image.open(source) as opened:
            opened.load()
            pixel_values = self.image_processor(opened, return_tensors="pt").pixel_values[0]
        levels = (pixel_values + 1) * ((self.image_processor.num_levels - 1) / 2)
        return levels.round().to(torch.uint8).numpy().tobytes()


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
    converter = ToLevels(HybridImageProcessor.from_config(model), config.image_column)
    shape = (model.num_channels, model.image_size, model.image_size)
    if config.dataset == DIGITS:
        raw = digits()
    else:
        names = [config.train_split, config.validation_split, config.test_split]
        raw = {
            name: _load(config, name) for name in names if name and (name != config.test_split or _has(config, name))
        }
    _check_columns(raw[config.train_split], config)

    if config.streaming:
        train = raw[config.train_split]
        if config.validation_split is None:
            raw_validation, train = train.take(max_streamed), train.skip(max_streamed)
        else:
            raw_validation = raw[config.validation_split].take(max_streamed)
        held_out = {"reference": train.take(max_streamed), "validation": raw_validation}
        if config.test_split in raw:
            held_out["test"] = raw[config.test_split].take(max_streamed)
        tables = {
            name: _to_table(datasets.Dataset.from_list(list(stream), features=stream.features), converter, config)
            for name, stream in held_out.items()
        }
    else:
        tables = {"reference": _to_table(raw[config.train_split], converter, config)}
        if config.validation_split is None:
            tables["reference"], tables["validation"] = _split(tables["reference"], config)
        else:
            tables["validation"] = _to_table(raw[config.validation_split], converter, config)
        if config.test_split in raw:
            tables["test"] = _to_table(raw[config.test_split], converter, config)
    if "test" not in tables:
        logger.warning("No test split: the final evaluation reports the validation split.")
        tables["test"] = tables["validation"]

    class_names = None
    if "label" in tables["validation"].column_names:
        class_names = tables["validation"].features["label"].names
    splits = {name: LevelsDataset(table, shape) for name, table in tables.items()}
    train = _stream_levels(train, converter, config) if config.streaming else splits["reference"]
    return Splits(train, **splits, shape=shape, class_names=class_names)


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


def _load(config: DataConfig, split: str):
    try:
        return datasets.load_dataset(config.dataset, split=split, streaming=config.streaming, **config.arguments)
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"Split {split!r} of data.dataset={config.dataset!r} with data.arguments={config.arguments} cannot be "
            f"loaded: {error}"
        ) from error


def _has(config: DataConfig, split: str) -> bool:
    return split in datasets.get_dataset_split_names(config.dataset, **config.arguments)


def _check_columns(raw, config: DataConfig) -> None:
    columns = raw.column_names
    if columns is None:  # a stream without declared features
        columns = list(next(iter(raw)))
    for name, column in (("image_column", config.image_column), ("group_column", config.group_column)):
        if column is not None and column not in columns:
            raise ValueError(f"data.{name}={column!r} is not a column of the dataset, which has: {', '.join(columns)}.")
    if config.label_column is not None and config.label_column not in columns:
        logger.warning(
            "data.label_column=%r is not a column of the dataset, which has: %s. The probes, which need labels, are "
            "skipped.",
            config.label_column,
            ", ".join(columns),
        )


def _to_table(raw: datasets.Dataset, converter: ToLevels, config: DataConfig) -> datasets.Dataset:
    """Columns `levels`, and `label` and `group` where the data has them; unreadable images named and left out."""
    raw = raw.cast_column(config.image_column, datasets.Image(decode=False))
    renamed = {config.label_column: "label", config.group_column: "group"}
    kept = [column for column in raw.column_names if column in renamed]
    dropped = [column for column in raw.column_names if column not in kept]
    table = raw.map(
        converter, with_indices=True, batched=True, batch_size=256, remove_columns=dropped, desc="Converting images"
    ).rename_columns({column: renamed[column] for column in kept if column != renamed[column]})
    if "label" in table.column_names and not isinstance(table.features["label"], datasets.ClassLabel):
        table = table.class_encode_column("label")

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
        raise ValueError(f"data.dataset={config.dataset!r} holds no image.")
    return table.remove_columns("error")


def _split(table: datasets.Dataset, config: DataConfig) -> tuple[datasets.Dataset, datasets.Dataset]:
    """A training and a validation part: by group where there are groups, else stratified where there are labels."""
    indices = np.arange(len(table))
    if "group" in table.column_names:
        splitter = GroupShuffleSplit(n_splits=1, test_size=config.validation_fraction, random_state=config.split_seed)
        train, validation = next(splitter.split(indices, groups=np.array(table["group"][:])))
    else:
        labels = np.array(table["label"][:]) if "label" in table.column_names else None
        try:
            train, validation = train_test_split(
                indices, test_size=config.validation_fraction, random_state=config.split_seed, stratify=labels
            )
        except ValueError as error:
            raise ValueError(
                f"{len(table)} images cannot be split into training and data.validation_fraction="
                f"{config.validation_fraction}: {error}"
            ) from error
    return table.select(np.sort(train)), table.select(np.sort(validation))


def _stream_levels(
    stream: datasets.IterableDataset, converter: ToLevels, config: DataConfig
) -> datasets.IterableDataset:
    """The stream as rows of levels, shuffled within a buffer; unreadable images named and left out."""
    num_read = num_unreadable = 0

    def readable(error: str | None) -> bool:
        nonlocal num_read, num_unreadable
        num_read += 1
        if error is not None:
            num_unreadable += 1
            logger.warning("Skipped an image that cannot be read: %s", error)
            if num_read >= 100 and num_unreadable > config.max_unreadable_share * num_read:
                raise ValueError(
                    f"{num_unreadable} of the first {num_read} images of the stream cannot be read, more than "
                    f"data.max_unreadable_share={config.max_unreadable_share}."
                )
        return error is None

    columns = list(stream.features or next(iter(stream)))
    stream = stream.cast_column(config.image_column, datasets.Image(decode=False))
    stream = stream.map(converter, with_indices=True, batched=True, batch_size=64, remove_columns=columns)
    stream = stream.filter(readable, input_columns="error")
    return stream.shuffle(seed=config.split_seed, buffer_size=config.shuffle_buffer).remove_columns("error")


@dataclass
class Collate:
    """A batch of levels (B, C, H, W), from a `LevelsDataset` (already one tensor) or from rows of a stream."""

    shape: tuple[int, int, int]

    def __call__(self, samples) -> torch.Tensor:
        if isinstance(samples, torch.Tensor):
            return samples
        return rows_to_levels([sample["levels"] for sample in samples], self.shape)
