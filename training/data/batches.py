"""
Training batches without end, from any position on.

The order of the images follows from the seed and from the size of the global batch alone, so a run that was stopped
goes on with the very next one, also on another number of processes. Shape letters: B batch of a process, C channels,
H height, W width.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .images import ImageStream, LevelsDataset, rows_to_levels


logger = logging.getLogger(__name__)

# Where the order of the images goes on: the epoch, then in a table the number of its next global batch; in a lane of a
# stream the place of a shard in the epoch, the first row in it of a block, and how many images of the block are taken.
Place = tuple[int, ...]
# Of a process: the place of each lane it reads; of a table, which has no lanes, a single one.
Position = list[Place]
Batch = tuple[torch.Tensor, torch.Tensor | None, Position]

# Lanes that a process opens at most.
MAX_LANES = 8


@dataclass(frozen=True)
class Lanes:
    """
    How a stream is read, from the first image of a run to its last.

    Args:
        num: lanes of all processes.
        block_size: rows that a lane shuffles at a time.
    """

    num: int
    block_size: int


def lanes_of(source: LevelsDataset | ImageStream, batch_size: int, num_processes: int) -> Lanes:
    """
    Of a run that begins on `num_processes`, each with a batch of `batch_size`: as many lanes as the shards of the
    stream allow, at most `MAX_LANES` of a process, which share its buffer. A table is a single lane.
    """
    if isinstance(source, LevelsDataset):
        return Lanes(1, 1)
    allowed = [n for n in range(1, MAX_LANES + 1) if batch_size % n == 0 and n * num_processes <= source.num_shards]
    of_process = max(allowed, default=1)
    return Lanes(of_process * num_processes, max(1, source.shuffle_buffer // of_process))


class ShuffledBatches(IterableDataset):
    """
    Every epoch is a new permutation of a `LevelsDataset`, cut into global batches that the processes share out.

    With clusters, the images of a global batch are of one: going through the permutation, each image joins those of its
    cluster, which are a batch as soon as they are enough. What is left over at the end of an epoch is not seen in it.

    Args:
        batch_size: images of one process.
        process_index: number of this process among `num_processes`.
        clusters: (N,) integers; `None` for a single cluster.
    """

    def __init__(
        self,
        source: LevelsDataset,
        batch_size: int,
        seed: int,
        process_index: int,
        num_processes: int,
        start: Place,
        clusters: np.ndarray | None = None,
    ):
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.process_index, self.num_processes, self.start = process_index, num_processes, start
        self.clusters = np.zeros(len(source), int) if clusters is None else clusters

    def __iter__(self) -> Iterator[Batch]:
        size = self.batch_size * self.num_processes
        if len(self.source) < size:
            raise ValueError(_too_few(self.batch_size, self.num_processes))
        names, sizes = np.unique(self.clusters, return_counts=True)
        if sizes.min() < size:
            raise ValueError(
                f"Cluster {names[sizes.argmin()]} of data.clusters has {sizes.min()} images, which do not fill one "
                f"batch of optimization.batch_size={self.batch_size} on each of {self.num_processes} process(es), "
                "and would never be seen; lower it, or make fewer clusters."
            )
        began, first = self.start
        for epoch in count(began):
            batches = self.in_order(epoch, size)
            own = slice(self.process_index * self.batch_size, (self.process_index + 1) * self.batch_size)
            for i in range(first, len(batches)):
                chosen = batches[i, own]
                yield self.source.__getitems__(chosen.tolist()), torch.from_numpy(chosen), [(epoch, i + 1)]
            first = 0

    def in_order(self, epoch: int, size: int) -> np.ndarray:
        """The images of each global batch of an epoch, (number of batches, `size`)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
        # By cluster, within which the order stays.
        places = self.clusters[order].argsort(kind="stable")
        of_clusters = np.split(places, np.unique(self.clusters[order[places]], return_index=True)[1][1:])
        full = np.concatenate([part[: len(part) // size * size] for part in of_clusters]).reshape(-1, size)
        return order[full[full[:, -1].argsort()]]


class StreamedBatches(IterableDataset):
    """
    Lanes of an `ImageStream`, each of which adds its part to every global batch.

    Every epoch the shards are dealt to the lanes in a new order. A lane reads its shards one after the other, in blocks
    of `lanes.block_size` rows that are shuffled; it takes the epochs at its own pace. With fewer shards than lanes,
    each lane reads all of them and takes the rows in turn. To begin in the middle, at most the rows of a shard before
    it, and of the block, are read again, none of which is converted.

    Iterating gives the parts of the batches, lane after lane; worker processes share the lanes out, and `DataLoader`
    takes a part from each in turn, so their number does not change the order. It must divide that of the lanes.

    Args:
        part_size: images that a lane adds to a batch.
        own: numbers of the lanes that this process reads.
        start: place of each of these.
    """

    def __init__(
        self,
        source: ImageStream,
        part_size: int,
        seed: int,
        own: range,
        lanes: Lanes,
        start: Position,
    ):
        self.source, self.part_size, self.seed = source, part_size, seed
        self.own, self.lanes, self.start = own, lanes, start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        of_worker = slice(None) if worker is None else slice(worker.id, None, worker.num_workers)
        parts = [self.parts(*each) for each in list(zip(self.own, self.start, strict=True))[of_worker]]
        while True:
            for of_lane in parts:
                yield next(of_lane)

    def parts(self, lane: int, start: Place) -> Iterator[Batch]:
        """What a lane adds to one batch after the other."""
        source, (began, *within) = self.source, start
        for epoch in count(began):
            part, num_parts, num_unreadable = [], 0, 0
            for num_converted, (image, name, place) in enumerate(self.shuffled(lane, epoch, *within), start=1):
                levels, error = source.converter.convert(image, name)
                if error is None:
                    part.append(levels)
                else:
                    num_unreadable += 1
                    logger.warning("Skipped an image that cannot be read: %s", error)
                if num_converted >= 100 and num_unreadable > source.max_unreadable_share * num_converted:
                    raise ValueError(
                        f"{num_unreadable} of {num_converted} images of the stream cannot be read, more than "
                        f"data.max_unreadable_share={source.max_unreadable_share}; mend them, or raise the share."
                    )
                if len(part) == self.part_size:
                    yield rows_to_levels(part, source.shape), None, [(epoch, *place)]
                    part, num_parts = [], num_parts + 1
            if (epoch, *within) == (0, 0, 0, 0) and num_parts == 0:
                message = _too_few(self.part_size * len(self.own), self.lanes.num // len(self.own))
                raise ValueError(
                    f"{message} The stream is read in {self.lanes.num} lanes, each of which has to give "
                    f"{self.part_size}."
                )
            within = [0, 0, 0]

    def shuffled(self, lane: int, epoch: int, place: int, row: int, num_taken: int):
        """The images of a lane in an epoch, each with its name and the place after it in the epoch."""
        rows = self.rows(lane, epoch, place, row)
        while block := list(islice(rows, self.lanes.block_size)):
            order = np.random.default_rng([self.seed, epoch, lane, place, row]).permutation(len(block))
            for i in range(num_taken, len(block)):
                image, name, _ = block[order[i]]
                yield image, name, (place, row, i + 1)
            *_, (place, row) = block[-1]
            num_taken = 0

    def rows(self, lane: int, epoch: int, place: int, row: int):
        """The rows of a lane in an epoch, from a row of the shard at `place` on, each with name and what follows."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.source.num_shards)
        takes_turns = self.lanes.num > len(order)
        if not takes_turns:
            order = order[lane :: self.lanes.num]
        for at in range(place, len(order)):
            shard, first = int(order[at]), row if at == place else 0
            for number, image in enumerate(self.source.images(shard, first), start=first):
                if not takes_turns or number % self.lanes.num == lane:
                    yield image, f"row {number} of shard {shard}", (at, number + 1)


def training_batches(
    source: LevelsDataset | ImageStream,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    num_processes: int = 1,
    start: Position | None = None,
    lanes: Lanes | None = None,
    num_workers: int = 0,
    clusters: np.ndarray | None = None,
) -> Iterator[Batch]:
    """
    Levels (B, C, H, W), uint8, the index of each image in the source, (B,), or `None` in a stream, and the position
    after them.

    Args:
        batch_size: images of one process.
        seed: of the order of the images.
        process_index: number of this process among the `num_processes` that share each global batch out.
        start: where to begin; by default with the first image.
        lanes: of a stream; by default those of a run that began on as many processes.
        num_workers: processes that prepare the next batches meanwhile; of a table one is enough.
        clusters: (N,) integers; the images of a batch are of one. Of a table only.
    """
    # Else every new iterator would draw from torch's default generator, which the augmentation draws from.
    common = {"batch_size": None, "collate_fn": _unchanged, "generator": torch.Generator()}
    if isinstance(source, LevelsDataset):
        (place,) = start or [(0, 0)]
        batches = ShuffledBatches(source, batch_size, seed, process_index, num_processes, place, clusters)
        pin = torch.accelerator.is_available()
        yield from DataLoader(batches, num_workers=min(1, num_workers), pin_memory=pin, **common)
    lanes = lanes or lanes_of(source, batch_size, num_processes)
    of_process = lanes.num // num_processes
    own = range(process_index * of_process, (process_index + 1) * of_process)
    start = start or [(0, 0, 0, 0)] * of_process
    parts = StreamedBatches(source, batch_size // of_process, seed, own, lanes, start)
    num_workers = max(n for n in range(min(num_workers, of_process) + 1) if n == 0 or of_process % n == 0)
    ahead = 2 * of_process // num_workers if num_workers else None
    loader = iter(DataLoader(parts, num_workers=num_workers, prefetch_factor=ahead, **common))
    while True:
        levels, _, places = zip(*islice(loader, of_process), strict=True)
        yield torch.cat(levels), None, [place for (place,) in places]


def _unchanged(batch):
    return batch


def _too_few(batch_size: int, num_processes: int) -> str:
    return (
        f"The training images do not fill one batch of optimization.batch_size={batch_size} on each of {num_processes} "
        "process(es); lower it."
    )
