"""
An embedded collection: a folder of Parquet shards, and `embedding.json`, which says what made them.

A shard is there whole or not at all. Its metadata hold a digest of the names of all images that it was made of, the
broken ones too, so that a collection is not continued with others.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .checkpoints import fingerprint
from .options import require
from .results import read_json, written_whole
from .sources import Item


_DESCRIPTION = "embedding.json"
_DIGEST = b"images"


class Collection:
    """
    Args:
        folder: of the shards.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.arrow, self.parquet = require("pyarrow"), require("pyarrow.parquet")

    @property
    def description(self) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: no collection.
            ValueError: its description is damaged.
        """
        path = self.folder / _DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} is no embedded collection: it holds no {_DESCRIPTION}.")
        return read_json(path, "checkpoint", "weights", "dtype")

    def require_whole(self) -> None:
        """
        Raises:
            FileNotFoundError: no collection.
            ValueError: some of its shards are missing.
        """
        if self.description:
            self.shards()

    def require_made_by(self, model, name: str) -> None:
        """
        Raises:
            ValueError: the weights of the model, called `name`, are others.
        """
        made_by = self.description
        if made_by["weights"] != fingerprint(model):
            raise ValueError(
                f"{self.folder} was embedded by {made_by['checkpoint']} in {made_by['dtype']}, whose weights are not "
                f"those of {name}: their vectors do not compare."
            )

    def open(self, description: dict[str, Any]) -> None:
        """
        Begin a collection, or go on with one.

        Raises:
            ValueError: one that something else has made.
        """
        if (self.folder / _DESCRIPTION).is_file():
            found = self.description
            differing = [key for key, value in description.items() if found.get(key) != value]
            if differing:
                key = differing[0]
                raise ValueError(
                    f"{self.folder} was made with {key} {found.get(key)!r}, not {description[key]!r}; give the same "
                    "command again to go on, or another --output."
                )
            return
        if any(self.folder.glob("*")):
            raise ValueError(f"{self.folder} holds something else; give an empty or new folder as --output.")
        with written_whole(self.folder / _DESCRIPTION) as partial:
            partial.write_text(json.dumps(description, indent=2) + "\n")

    def has(self, number: int, items: list[Item]) -> bool:
        """
        Whether a shard is there already.

        Raises:
            ValueError: it was made of other images.
        """
        path = self._path(number)
        if not path.exists():
            return False
        if self.parquet.read_metadata(path).metadata.get(_DIGEST) != _digest(items):
            raise ValueError(
                f"{path} was made of other images: the sources have changed since. Give another --output, or remove "
                f"{self.folder} to begin anew."
            )
        return True

    def write(self, number: int, items: list[Item], columns: dict[str, Any]) -> None:
        """A shard of `columns`, made of `items`."""
        for left_over in self.folder.glob(f"{self._path(number).name}.*.partial"):
            left_over.unlink(missing_ok=True)
        table = self.arrow.table(columns).replace_schema_metadata({_DIGEST: _digest(items)})
        with written_whole(self._path(number)) as partial:
            self.parquet.write_table(table, partial)

    def shards(self) -> list[Path]:
        """
        In order.

        Raises:
            ValueError: none, or some are missing.
        """
        found = {
            int(match[1]): path
            for path in self.folder.iterdir()
            if (match := re.fullmatch(r"part-(\d+)\.parquet", path.name))
        }
        missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
        if missing:
            raise ValueError(
                f"{self.folder} has no {self._path(missing[0]).name}: it was not embedded to the end; give that "
                "command again, and it goes on."
            )
        return [found[number] for number in sorted(found)]

    def vectors(self) -> Iterator[tuple[list[str], Any]]:
        """Names and vectors (n, P), in fp32, of a few thousand images at a time."""
        for path in self.shards():
            for batch in self.parquet.ParquetFile(path).iter_batches(4096, columns=["id", "vector"]):
                if batch.num_rows:
                    vectors = batch.column("vector").flatten().to_numpy().reshape(batch.num_rows, -1)
                    yield batch.column("id").to_pylist(), vectors

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"


def _digest(items: list[Item]) -> bytes:
    return hashlib.sha256("\0".join(item.name for item in items).encode()).hexdigest().encode()
