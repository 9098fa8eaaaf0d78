"""`hybrid search`: the nearest neighbours of images in an embedded collection."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .batches import Reader
from .checkpoints import load, measure
from .collection import Collection
from .options import CheckpointOptions, ComputeOptions, ImageOptions, require, say, verb
from .progress import Progress
from .results import Format, FormatOption, RowsOption, require_writable, rows_to
from .sources import Item, Sources


COLUMNS = ("query", "rank", "similarity", "id")


class Index(StrEnum):
    none = "none"
    flat = "flat"
    ivf = "ivf"


@verb
def search(
    checkpoint: CheckpointOptions,
    collection: Annotated[Path, typer.Argument(help="Folder that hybrid embed wrote with this checkpoint.")],
    images: ImageOptions,
    compute: ComputeOptions,
    num_neighbours: Annotated[int, typer.Option("--num-neighbours", "-k", min=1, help="Of each image.")] = 5,
    index: Annotated[
        Index,
        typer.Option(
            help="none: exact, vector by vector. FAISS (extra faiss): flat is exact, ivf fast and approximate."
        ),
    ] = Index.none,
    output: RowsOption = None,
    format: FormatOption = Format.csv,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG with a row for each image: itself, then its neighbours by files.")
    ] = None,
):
    """
    Find the nearest neighbours of images in an embedded collection: query, rank, similarity (cosine of the vectors) and
    id of the neighbour.
    """
    sources, embedded = Sources(images), Collection(collection)
    embedded.require_whole()
    if sheet is not None:
        require_writable(sheet)
    model, processor = load(checkpoint, compute)
    embedded.require_made_by(model, f"{checkpoint.checkpoint} in {compute.dtype.value}")
    import numpy as np

    reader, items, found = Reader(processor, images, compute.batch_size), [], []
    with Progress(sources.count()) as progress:
        for batch in reader.batches(sources, progress):
            items += batch.items
            found.append(measure(model, batch.pixel_values).features.numpy())
    reader.unreadable.check(at_end=True)
    neighbours = exact if index == Index.none else with_faiss
    names, similarities = neighbours(embedded, unit(np.concatenate(found)), num_neighbours, index)
    with rows_to(output, format, COLUMNS) as rows:
        for item, of_item, values in zip(items, names, similarities.tolist(), strict=True):
            for rank, (name, value) in enumerate(zip(of_item, values, strict=True), start=1):
                rows.write(item.name, rank, value, name)
    if sheet is not None:
        draw(items, names, processor, sheet)


def unit(vectors):
    """Vectors (N, P) of length 1; those of length 0 stay."""
    import numpy as np

    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def exact(collection: Collection, queries, num_neighbours: int, index: Index = Index.none):
    """
    Nearest neighbours of queries (Q, P) of length 1, with no more of the collection in memory than a few thousand
    vectors.

    Returns:
        names, lists of K for each query, and cosines (Q, K), the highest first; K is `num_neighbours`, or the number of
        images where that is less.
    """
    import numpy as np

    best, names = np.empty((len(queries), 0), "float32"), np.empty((len(queries), 0), object)
    for batch_names, vectors in collection.vectors():
        best = np.concatenate([best, queries @ unit(vectors).T], axis=1)
        of_batch = np.broadcast_to(np.array(batch_names, object), (len(queries), len(batch_names)))
        names = np.concatenate([names, of_batch], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :num_neighbours]
        best, names = np.take_along_axis(best, order, 1), np.take_along_axis(names, order, 1)
    return names.tolist(), best


def with_faiss(collection: Collection, queries, num_neighbours: int, index: Index):
    """As [`exact`], by an index of FAISS in memory."""
    faiss, datasets = require("faiss", "faiss"), require("datasets")
    import numpy as np

    paths = [str(path) for path in collection.shards()]
    rows = datasets.Dataset.from_parquet(paths, columns=["id", "vector"]).with_format("numpy")
    num_lists = max(1, round(len(rows) ** 0.5))
    kind = "L2norm,Flat" if index == Index.flat else f"L2norm,IVF{num_lists},Flat"
    say(f"Indexing {len(rows)} vectors by FAISS ({kind}) ...")
    rows.add_faiss_index(
        "vector", string_factory=kind, metric_type=faiss.METRIC_INNER_PRODUCT, train_size=len(rows), dtype=np.float32
    )
    built = rows.get_index("vector").faiss_index
    if index == Index.ivf:
        # A tenth of the lists: most of the true neighbours at a tenth of the price.
        faiss.extract_index_ivf(built).nprobe = max(1, num_lists // 10)
    similarities, indices = built.search(np.ascontiguousarray(queries, "float32"), min(num_neighbours, len(rows)))
    # Where the lists that are looked into hold fewer than K, FAISS fills up with -1.
    names = [[rows[int(i)]["id"] if i >= 0 else "" for i in of_query] for of_query in indices]
    return names, similarities


def draw(items: list[Item], names: list[list[str]], processor, path: Path) -> None:
    """A sheet of pictures; a neighbour that is no file (any more) stays empty."""
    from .pictures import save, sheet

    found = [[item, *map(file_of, of_item)] for item, of_item in zip(items, names, strict=True)]
    tiles = [tile(one, processor) for row in found for one in row]
    save(sheet(tiles, num_columns=1 + len(names[0]), height=96 * len(items)), path)


def tile(item: Item, processor):
    """A picture as the model sees it; grey where the image cannot be read."""
    from PIL import Image

    try:
        with item.open() as image:
            return processor.pixels_to_images(processor(image, return_tensors="pt").pixel_values)[0]
    except Exception:  # as for every image that cannot be read
        return Image.new("RGB", (processor.size["width"], processor.size["height"]), "grey")


def file_of(name: str) -> Item:
    """The image of that name in a collection, which can be shown if it is a file."""
    return Item(name, name if os.path.isfile(name) else None)
