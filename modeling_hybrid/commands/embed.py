"""`hybrid embed`: images -> a folder of vectors."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from .batches import Reader
from .checkpoints import fingerprint, load, measure
from .collection import Collection
from .options import CheckpointOptions, ComputeOptions, ImageOptions, require, say, verb
from .processes import num_processes, rank
from .progress import Progress
from .sources import Item, Sources


@verb
def embed(
    checkpoint: CheckpointOptions,
    images: ImageOptions,
    compute: ComputeOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the collection.")],
    shard_size: Annotated[int, typer.Option(min=1, help="Images of a Parquet file.")] = 4096,
):
    """
    Embed images: Parquet files with id (path, or file and row), vector, bits_per_dim where the checkpoint has a
    likelihood, and strangeness where it is a fitted detector.

    A file is written whole or not at all: after an interruption, the same command goes on. Several processes share the
    work: torchrun --nproc_per_node 8 --no-python hybrid embed ...
    """
    sources, collection = Sources(images), Collection(output)
    model, processor = load(checkpoint, compute)
    collection.open(
        {
            "checkpoint": checkpoint.checkpoint,
            "weights": fingerprint(model),
            "dtype": compute.dtype.value,
            "sources": images.sources,
            "limit": images.limit,
            "shard_size": shard_size,
        }
    )
    reader = Reader(processor, images, compute.batch_size)
    items, number, num_written = iter(sources), 0, 0
    total = sources.count()
    with Progress(total and -(-total // num_processes())) as progress:
        while shard := list(islice(items, shard_size)):
            if number % num_processes() == rank():
                if collection.has(number, shard):
                    progress.skip(len(shard))
                else:
                    num_written += _write(collection, number, shard, model, reader, progress)
            number += 1
    reader.unreadable.check(at_end=True)
    say(f"{num_written} images embedded into {output}.")


def _write(collection: Collection, number: int, shard: list[Item], model, reader: Reader, progress: Progress) -> int:
    """The number of images of a shard that could be read."""
    arrow, numpy = require("pyarrow"), require("numpy")
    names, found = [], []
    for batch in reader.batches(shard, progress):
        names += [item.name for item in batch.items]
        found.append(measure(model, batch.pixel_values))
    size = model.config.pooled_size
    vectors = numpy.concatenate([numpy.empty((0, size), "float32"), *(one.features.numpy() for one in found)])
    columns = {
        "id": arrow.array(names, arrow.string()),
        "vector": arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), size),
    }
    for name in ("bits_per_dim", "strangeness"):
        values = [getattr(one, name) for one in found]
        if values and values[0] is not None:
            columns[name] = arrow.array(numpy.concatenate([value.numpy() for value in values]))
    collection.write(number, shard, columns)
    return len(names)
