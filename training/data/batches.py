"""
Training batches without end, from any position on.

The order of the images follows from the seed alone, so a run that was stopped goes on with the very next batch.
Shape letters: B batch, C channels, H height, W width.
"""

import logging
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .images import ImageStream, LevelsDataset, rows_to_levels


logger = logging.getLogger(__name__)

# An epoch, and how far a process has come in it: rounds of batches of a `LevelsDataset`, rows of an `ImageStream`.
Position = tuple[int, int]


class Batches(IterableDataset):
    """
    Base class: iterating gives levels (B, C, H, W), uint8, the index of each image in the source, (B,), or `None` where
    it has no fixed one, and the position after them.

    Args:
        source: where the images come from.
        batch_size: images of one process.
        seed: of the order of the images.
        process_index: number of this process among the `num_processes` that share the images out.
        start: where to begin.
    """

    def __init__(
        self,
        source: LevelsDataset | ImageStream,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        start: Position = (0, 0),
    ):
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.start = start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, Position]]:
        for epoch in count(self.start[0]):
            first = self.start[1] if epoch == self.start[0] else 0
            offset = first
            for levels, sample_ids, offset in self.iterate_epoch(epoch, first):
                yield levels, sample_ids, (epoch, offset)
            if offset == 0:
                raise ValueError(
                    f"The training images do not fill one batch of optimization.batch_size={self.batch_size} on each "
                    f"of {self.num_processes} process(es); lower it."
                )

    def iterate_epoch(self, epoch: int, offset: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, int]]:
        """The full batches of an epoch from `offset` on: levels, indices, and the offset after them."""
        raise NotImplementedError


class ShuffledBatches(Batches):
    """Every epoch is a new permutation of a `LevelsDataset`, cut into batches that the processes take in turn."""

    def iterate_epoch(self, epoch, offset):
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
        num_rounds = len(order) // (self.batch_size * self.num_processes)
        for i in range(offset, num_rounds):
            first = (i * self.num_processes + self.process_index) * self.batch_size
            chosen = order[first : first + self.batch_size]
            yield self.source.__getitems__(chosen.tolist()), torch.from_numpy(chosen), i + 1


class StreamedBatches(Batches):
    """
    An `ImageStream`, shuffled within its buffer. Every process reads all rows and converts those it takes in turn.

    To begin in the middle, the rows before are read again, but not converted.
    """

    def iterate_epoch(self, epoch, offset):
        source = self.source
        rows = source.rows.shuffle(seed=self.seed, buffer_size=source.shuffle_buffer)
        rows.set_epoch(epoch)
        # Not by plain iteration: that shuffles in another way inside a process that reads ahead.
        images = (image for chunk in rows.iter(batch_size=64) for image in chunk["image"])
        batch, num_converted, num_unreadable = [], 0, 0
        for num_read, image in enumerate(islice(images, offset, None), start=offset + 1):
            if num_read % self.num_processes != self.process_index:
                continue
            levels, error = source.converter.convert(image, f"row {num_read} of the shuffled epoch {epoch}")
            num_converted += 1
            if error is None:
                batch.append(levels)
            else:
                num_unreadable += 1
                logger.warning("Skipped an image that cannot be read: %s", error)
            if num_converted >= 100 and num_unreadable > source.max_unreadable_share * num_converted:
                raise ValueError(
                    f"{num_unreadable} of {num_converted} images of the stream cannot be read, more than "
                    f"data.max_unreadable_share={source.max_unreadable_share}; mend them, or raise the share."
                )
            if len(batch) == self.batch_size:
                yield rows_to_levels(batch, source.shape), None, num_read
                batch = []


def training_loader(source: LevelsDataset | ImageStream, read_ahead: bool, **arguments) -> DataLoader:
    """
    Loads the batches that the arguments of [`Batches`] describe.

    Args:
        read_ahead: whether a process of its own prepares the next batches meanwhile.
    """
    batches = (ShuffledBatches if isinstance(source, LevelsDataset) else StreamedBatches)(source, **arguments)
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=int(read_ahead),
        collate_fn=_unchanged,
        pin_memory=torch.accelerator.is_available(),
        # Else every new iterator would draw from torch's default generator, which the augmentation draws from.
        generator=torch.Generator(),
    )


def _unchanged(batch):
    return batch
