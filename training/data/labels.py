"""Labels of any type -> integers that mean the same class in every split."""

import logging

import datasets

from ..config import DataConfig


logger = logging.getLogger(__name__)


def encode_labels(
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
