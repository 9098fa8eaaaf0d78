"""Where images come from: one undecoded image after the other, in an order that is always the same."""

import glob
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice, zip_longest

from PIL import Image, UnidentifiedImageError

from .options import ImageOptions, printable, require


SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".ico", ".j2k", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)
# Others of Pillow start programs (EPS), or are drawings and containers.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_PARQUET_ROWS = 64


@dataclass
class Item:
    """
    Args:
        name: path, or file and row; what of it cannot be printed is replaced.
        content: path, bytes of an image file, or `None` where a row has no image.
        source: number of the source that it came from.
    """

    name: str
    content: str | bytes | None
    source: int = 0

    def open(self) -> Image.Image:
        """
        Only the header is read; to be closed by the caller.

        Raises:
            ValueError: no image, or none of a known format.
        """
        if self.content is None:
            raise ValueError("the row has no image")
        Image.init()
        formats = [name for name in _FORMATS if name in Image.OPEN]
        try:
            return Image.open(self.content if isinstance(self.content, str) else BytesIO(self.content), formats=formats)
        except UnidentifiedImageError:  # which would name the object that holds the bytes
            raise ValueError(f"no image of a known format ({', '.join(formats)})") from None


class Sources:
    """
    The images of a command line.

    Args:
        options: as the user gave them.
        in_turn: whether one image of each source follows the other, so that a limit leaves some of each.

    Attributes:
        ignored: files of the folders read so far that are no images by their names.

    Raises:
        ValueError, FileNotFoundError: a source that is not there, or holds no image.
    """

    def __init__(self, options: ImageOptions, in_turn: bool = False):
        self.options = options
        self.in_turn = in_turn
        self.ignored: list[str] = []
        self._readers = [self._reader(source) for source in options.sources]

    def __iter__(self) -> Iterator[Item]:
        return islice(self._all(), self.options.limit)

    def count(self) -> int | None:
        """How many images there are, or `None` where only reading them would tell."""
        counts = [reader.count() for reader in self._readers]
        if None in counts:
            return self.options.limit
        return min(sum(counts), self.options.limit or sum(counts))

    def _all(self) -> Iterator[Item]:
        self.ignored.clear()
        by_source = [self._items(number) for number in range(len(self._readers))]
        if self.in_turn:
            return (item for items in zip_longest(*by_source) for item in items if item is not None)
        return chain.from_iterable(by_source)

    def _items(self, number: int) -> Iterator[Item]:
        is_empty = True
        for name, content in self._readers[number]:
            is_empty = False
            yield Item(printable(name), content, number)
        if is_empty:
            raise ValueError(f"{printable(self.options.sources[number])} holds no image.")

    def _reader(self, source: str):
        if source == "-":
            return _Stdin()
        if os.path.isdir(source):
            folder = _Folder(source, self.ignored)
            tables = folder.tables()
            return _Files(tables, self.options.image_column) if tables else folder
        if os.path.isfile(source):
            return _Files([source], self.options.image_column)
        if glob.has_magic(source):
            found = sorted(path for path in glob.iglob(source, recursive=True) if os.path.isfile(path))
            if not found:
                raise FileNotFoundError(f"No file is matched by {printable(source)}.")
            return _Files(found, self.options.image_column)
        is_file = source.lower().endswith((*SUFFIXES, ".parquet"))
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", source) and not is_file:
            return _HubDataset(source, self.options)
        raise FileNotFoundError(f"There is no file or folder {printable(source)}.")


class _Stdin:
    def count(self) -> None:
        return None

    def __iter__(self):
        for line in getattr(sys.stdin, "buffer", sys.stdin):
            path = os.fsdecode(line).rstrip("\r\n")
            if path:
                yield path, path


class _Folder:
    def __init__(self, folder: str, ignored: list[str]):
        self.folder = folder
        self.ignored = ignored

    def tables(self) -> list[str]:
        """
        Its Parquet files, where it holds no image file: beside images, they hold what is said of these.

        Raises:
            ValueError: neither images nor Parquet files.
        """
        found = []
        for path in self._paths():
            if path.lower().endswith(SUFFIXES):
                return []
            if path.endswith(".parquet"):
                found.append(path)
        if not found:
            raise ValueError(f"{printable(self.folder)} holds no image.")
        return found

    def count(self) -> int:
        return sum(path.lower().endswith(SUFFIXES) for path in self._paths())

    def __iter__(self):
        for path in self._paths():
            if path.lower().endswith(SUFFIXES):
                yield path, path
            else:
                self.ignored.append(printable(path))

    def _paths(self) -> Iterator[str]:
        """Never all at once: there may be millions. What is hidden is left out."""
        for folder, folders, files in os.walk(self.folder, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))


def _refuse(error: OSError) -> None:
    """A folder that cannot be read, whose images would be missing without a word."""
    raise error


class _Files:
    """Image files, and Parquet files with a column of images: of bytes, of paths, or of both as `datasets` writes."""

    def __init__(self, paths: list[str], column: str):
        self.paths = paths
        self.column = column

    def count(self) -> int:
        return sum(self._parquet(path).metadata.num_rows if path.endswith(".parquet") else 1 for path in self.paths)

    def __iter__(self):
        for path in self.paths:
            yield from self._rows(path) if path.endswith(".parquet") else [(path, path)]

    def _parquet(self, path: str):
        parquet = require("pyarrow.parquet")
        try:
            file = parquet.ParquetFile(path)
        except require("pyarrow").ArrowInvalid as error:
            raise ValueError(f"{printable(path)} is no Parquet file: {error}") from None
        if self.column not in file.schema_arrow.names:
            known = ", ".join(file.schema_arrow.names)
            raise ValueError(f"{printable(path)} has no column {self.column!r}; --image-column is one of: {known}.")
        return file

    def _rows(self, path: str):
        number = 0
        for batch in self._parquet(path).iter_batches(_PARQUET_ROWS, columns=[self.column]):
            for value in batch.column(0).to_pylist():
                yield f"{path}#{number}", _content(value, os.path.dirname(path))
                number += 1


class _HubDataset:
    """Streamed: rows are read in order and never all at once."""

    def __init__(self, source: str, options: ImageOptions):
        datasets = require("datasets")
        name, _, split = source.partition(":")
        split = split or options.split
        self.name, self.column = f"{name}/{split}", options.image_column
        try:
            rows = datasets.load_dataset(name, split=split, streaming=True)
        except Exception as error:  # of the client, of the network, of the repository
            raise ValueError(
                f"There is no file or folder {name}, and no data set of the Hub with a split {split!r} can be "
                f"read under this name: {error}"
            ) from error
        columns = rows.column_names or list(next(iter(rows), {}))
        if self.column not in columns:
            raise ValueError(f"{name} has no column {self.column!r}; --image-column is one of: {', '.join(columns)}.")
        rows = rows.select_columns([self.column])
        self.rows = rows.cast_column(self.column, datasets.Image(decode=False))

    def count(self) -> int | None:
        split = (self.rows.info.splits or {}).get(self.rows.split)
        return split.num_examples if split and split.num_examples else None

    def __iter__(self):
        for number, row in enumerate(self.rows):
            yield f"{self.name}#{number}", _content(row[self.column], "")


def _content(value, folder: str) -> str | bytes | None:
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return os.path.join(folder, value)
    return value if isinstance(value, bytes) else None
