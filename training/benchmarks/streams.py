"""
Memory and speed of a long stream (`data.streaming`): does what a process holds grow with the rows it has read?

    python -m training.benchmarks.streams [--rows 1000000] [--shards 100] [--threads 1] [--output streams.json]
        [--without-conversion]

Shards of Parquet with 8x8 grey PNG images are written into a temporary folder and read once, as a run of one process
reads them, with batches of 256 and a buffer of 10,000 rows. `--without-conversion` leaves the decoding of the images
out, which takes most of the time: what is measured then is the reading, the shuffling and the places to go on from.

    rows_per_s          Rows read, shuffled and (unless left out) converted in a second.
    early_mib           Memory of the process after a tenth of the rows.
    late_mib            The same after all of them.
    growth_mib          Their difference.
    resume_s            Seconds to the next batch of a new process of reading, from the place of the last one.

`--output` is one flat JSON object: the setting and these values; `_mib` is 2^20 bytes. Linux only.
"""

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from modeling_hybrid import HybridConfig

from ..command import command, parser_of
from ..config import DataConfig
from ..data.batches import training_batches
from ..data.images import ImageStream
from ..data.splits import load_splits
from .measure import add_options, begin, resident, table, write


BATCH_SIZE = 256


def write_shards(folder: Path, num_rows: int, num_shards: int) -> None:
    """Every shard holds the same rows: a thousand images, again and again."""
    random, images = np.random.default_rng(0), []
    for _ in range(1000):
        stream = io.BytesIO()
        Image.fromarray(random.integers(256, size=(8, 8), dtype=np.uint8)).save(stream, "PNG")
        images.append(stream.getvalue())
    rows = (images * (num_rows // num_shards // 1000 + 1))[: num_rows // num_shards]
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), folder / "0.parquet", row_group_size=10_000)
    for i in range(1, num_shards):
        shutil.copy(folder / "0.parquet", folder / f"{i}.parquet")


class Unconverted:
    def convert(self, image: dict, name: str) -> tuple[bytes, None]:
        return image["bytes"][:64], None


def read(stream: ImageStream, num_rows: int) -> dict[str, float]:
    num_batches, began = num_rows // BATCH_SIZE, time.perf_counter()
    batches = training_batches(stream, BATCH_SIZE, seed=0)
    for i in range(num_batches):
        _, _, place = next(batches)
        if i == num_batches // 10:
            early = resident()
    values = {"rows_per_s": num_batches * BATCH_SIZE / (time.perf_counter() - began), "early_mib": early}
    values |= {"late_mib": resident(), "growth_mib": resident() - early}
    began = time.perf_counter()
    next(training_batches(stream, BATCH_SIZE, seed=0, start=place))
    return values | {"resume_s": time.perf_counter() - began}


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.benchmarks.streams", __doc__)
    add_options(parser, output="streams.json", repeats=1)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--without-conversion", action="store_true")
    options = parser.parse_args(arguments)
    converts = not options.without_conversion
    settings = begin(options, rows=options.rows, shards=options.shards, converts=converts)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options.rows, options.shards)
        data = DataConfig("parquet", {"data_files": f"{folder}/*.parquet"}, label_column=None, streaming=True)
        stream = load_splits(data, HybridConfig.from_size("tiny", num_levels=256), max_images=100).train
        if not converts:
            stream.converter = Unconverted()
        values = read(stream, options.rows)
    print(table(values, targets={}))
    write(options.output, settings, values)


if __name__ == "__main__":
    sys.exit(main())
