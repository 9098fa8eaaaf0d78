"""
A data set -> its training, validation and test images, as levels.

    load -> select the columns -> convert -> split -> number the labels
"""

import glob
import logging
import os
from dataclasses import dataclass

import datasets
import numpy as np
from datasets.data_files import DataFilesDict, get_data_patterns
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from modeling_hybrid import HybridConfig, HybridImageProcessor

from ..config import DataConfig
from .images import ImageStream, LevelsDataset, ToLevels, num_shards, shard_of
from .labels import encode_labels


logger = logging.getLogger(__name__)
DIGITS = "digits"
# Images of each split of a stream that are kept for the evaluation, where evaluation.max_images does not say.
MAX_STREAMED = 2000
# Of fewer files, the parts that they can be read by become the shards.
_FEW_SHARDS = 64
# `datasets.load_dataset` raises these on what it cannot find, reach or read.
_LOADING_ERRORS = (OSError, TypeError, ValueError, datasets.exceptions.DatasetsError)
# Beside `datasets.Image`: paths, or the bytes of image files.
_IMAGE_DTYPES = ("string", "large_string", "binary", "large_binary")
# Converting fewer images than this takes a second or two, which needs no progress bar.
_MANY_IMAGES = 5_000


@dataclass
class Splits:
    """
    `train` is a `LevelsDataset` or, streamed, an `ImageStream`. `reference` are the training images that probes and
    statistics are fitted on: all of them, or the first of a stream. Either every split has labels, or none. Without
    `has_test`, `test` is `validation` once more.
    """

    train: LevelsDataset | ImageStream
    reference: LevelsDataset
    validation: LevelsDataset
    test: LevelsDataset
    shape: tuple[int, int, int]
    class_names: list[str] | None = None
    has_test: bool = True


def load_splits(config: DataConfig, model: HybridConfig, max_images: int = 0) -> Splits:
    """
    Training, validation and test images as levels.

    Args:
        model: the sizes and levels that images are converted to.
        max_images: of each split of a stream, how many are kept for the evaluation; 0 for [`MAX_STREAMED`]. Where a
            stream has no validation split, its first ones become one and are not trained on.

    Raises:
        ValueError: a dataset that is empty, has no such split or column, or has more unreadable images than
            `config.max_unreadable_share`.
    """
    converter = ToLevels(HybridImageProcessor.from_config(model))
    shape = (model.num_channels, model.image_size, model.image_size)
    raw = {name: _select(rows, config) for name, rows in _load(config).items()}
    stream = raw["train"]
    if config.streaming:
        max_streamed, begin = max_images or MAX_STREAMED, (0, 0)
        if stream.num_shards < _FEW_SHARDS:
            stream = stream.reshard()  # the row groups of Parquet files
        raw["train"] = stream
        if "validation" not in raw:
            raw["validation"], raw["train"] = stream.take(max_streamed), stream.skip(max_streamed)
            begin = _place_of(stream, max_streamed)
        raw = {name: _first_rows(rows, max_streamed) for name, rows in raw.items()}
        if len(raw["train"]) == 0 and len(raw["validation"]) > 0:
            raise ValueError(
                f"The stream of data.dataset={config.dataset!r} ends with its first {len(raw['validation'])} images, "
                "which become the validation split; lower evaluation.max_images, or name a data.validation_split."
            )

    tables = {name: _to_table(name, rows, converter, config) for name, rows in raw.items()}
    if "validation" not in tables:
        tables["train"], tables["validation"] = _split(tables["train"], config)
    has_test = "test" in tables
    if not has_test:
        logger.warning("No test split: the final evaluation reports the validation split.")
        tables["test"] = tables["validation"]
    tables, class_names = encode_labels(tables, config)

    reference, validation, test = (LevelsDataset(tables[name], shape) for name in ("train", "validation", "test"))
    train = reference
    if config.streaming:
        limits = config.shuffle_buffer, config.max_unreadable_share
        train = ImageStream(stream, converter, shape, *limits, begin)
    return Splits(train, reference, validation, test, shape, class_names, has_test)


def digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 digits, 8x8 with 17 levels, a stratified fifth of them for testing."""
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
        given = config.arguments | _without_odd_names(config) | arguments
        return datasets.load_dataset(config.dataset, streaming=config.streaming, **given)
    except _LOADING_ERRORS as error:
        raise ValueError(
            f"data.dataset={config.dataset!r} with data.arguments={config.arguments} cannot be loaded: {error}"
            + (f" ({error.__cause__})" if error.__cause__ else "")
        ) from error


def _without_odd_names(config: DataConfig) -> dict[str, dict[str, list[str]]]:
    """
    `data_files` of a folder of images without those whose names are no UTF-8, as of old archives: Arrow would refuse
    the whole folder. Nothing where there are none.
    """
    folder = config.arguments.get("data_dir", config.dataset)
    if "data_files" in config.arguments or not os.path.isdir(folder):
        return {}
    paths = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
    odd = [path for path in paths if not _is_utf8(path)]
    if not odd:
        return {}
    named = [f"{os.fsencode(path).decode(errors='backslashreplace')}: its name is no UTF-8" for path in sorted(odd)]
    _skip(named, len(paths), "files", config)
    found = DataFilesDict.from_patterns(get_data_patterns(os.path.abspath(folder)), base_path=os.path.abspath(folder))
    return {"data_files": {split: [glob.escape(p) for p in files if _is_utf8(p)] for split, files in found.items()}}


def _is_utf8(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


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
    is_encoded = isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)
    if not (feature is None or is_encoded or getattr(feature, "dtype", "") in _IMAGE_DTYPES):
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


def _place_of(stream: datasets.IterableDataset, row: int) -> tuple[int, int]:
    """The shard that holds a row of a stream, and the number of the row in it."""
    for shard in range(num_shards(stream)):
        size = sum(1 for _ in shard_of(stream, shard).take(row + 1))
        if size > row:
            break
        row -= size
    return shard, row


def _to_table(split: str, raw: datasets.Dataset, converter: ToLevels, config: DataConfig) -> datasets.Dataset:
    """Column `image` becomes `levels`; unreadable images are named and left out."""
    if len(raw) == 0:
        raise ValueError(f"The {split} split of data.dataset={config.dataset!r} holds no image.")
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
    if unreadable := [error for error in errors if error is not None]:
        _skip(unreadable, len(table), f"images of the {split} split", config)
        table = table.select([i for i, error in enumerate(errors) if error is None])
        if len(table) == 0:
            raise ValueError(f"No image of the {split} split of data.dataset={config.dataset!r} can be read.")
    return table.remove_columns("error")


def _skip(unreadable: list[str], num_images: int, what: str, config: DataConfig) -> None:
    """Name what cannot be read of `num_images`, or refuse where it is too much."""
    named = "\n  ".join(unreadable[:20]) + ("\n  ..." if len(unreadable) > 20 else "")
    message = f"{len(unreadable)} of {num_images} {what} cannot be read:\n  {named}"
    if len(unreadable) > config.max_unreadable_share * num_images:
        raise ValueError(
            f"{message}\nThat is more than data.max_unreadable_share={config.max_unreadable_share}; mend the files, or "
            "raise the share."
        )
    logger.warning("%s\nThey are skipped.", message)


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
