"""
Memory and time of one large batch, in one piece and in chunks (`optimization.chunk_size`).

    python -m training.benchmarks.gradient_cache [--threads 2] [--repeats 3] [--batch-size 128] [--chunk-size 16]
        [--output gradient_cache.json]

What is run is one forward and backward pass of both losses, two views of images of uniform noise, 32x32 RGB in 4x4
patches, on the CPU in fp32; the model is that of `training.benchmarks.peers`. The gradients are the same.

    whole_s, chunks_s       Median seconds of a pass; the two take turns, after a warm-up.
    time_ratio              Seconds, chunks / whole.
    whole_mib, chunks_mib   Peak memory, each in a fresh process: the most that a pass adds to what the process holds
                            once model and images exist. It includes the gradients.
    memory_ratio            MiB, chunks / whole.

`--output` is one flat JSON object: the setting and these values; `_mib` is 2^20 bytes.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator

from modeling_hybrid import HybridForPreTraining

from ..command import command, parser_of
from ..optimization.gradient_cache import cached_backward
from .measure import add_options, added_at_peak, begin, in_fresh_process, interleaved, table, write
from .peers import PATCH_SIZES, Sizes


WAYS = ("whole", "chunks")


def pass_over(way: str, sizes: Sizes, chunk_size: int) -> Callable[[], None]:
    """One call: the gradients of both losses on a batch."""
    torch.manual_seed(0)
    model = HybridForPreTraining(sizes.hybrid_config())
    inputs = {"pixel_values": sizes.images(), "view_kinds": torch.tensor([0, 1])}
    accelerator = Accelerator(cpu=True)

    def run():
        model.zero_grad()
        if way == "whole":
            model(**inputs).loss.backward()
        else:
            cached_backward(accelerator, model, inputs, chunk_size)

    return run


def memory(way: str, sizes: Sizes, chunk_size: int, threads: int) -> float:
    """MiB that one pass adds at its peak. Linux only, in a process of its own."""
    torch.set_num_threads(threads)
    return added_at_peak(pass_over(way, sizes, chunk_size))


def compare(sizes: Sizes, chunk_size: int, repeats: int) -> dict[str, float]:
    medians = interleaved({way: pass_over(way, sizes, chunk_size) for way in WAYS}, repeats)
    peaks = {way: in_fresh_process(memory, way, sizes, chunk_size, torch.get_num_threads()) for way in WAYS}
    return {
        **{f"{way}_s": median for way, median in medians.items()},
        "time_ratio": medians["chunks"] / medians["whole"],
        **{f"{way}_mib": peak for way, peak in peaks.items()},
        "memory_ratio": peaks["chunks"] / peaks["whole"],
    }


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.benchmarks.gradient_cache", __doc__)
    add_options(parser, output="gradient_cache.json", repeats=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--chunk-size", type=int, default=16)
    options = parser.parse_args(arguments)
    settings = begin(options, batch_size=options.batch_size, chunk_size=options.chunk_size)
    values = compare(replace(PATCH_SIZES, batch_size=options.batch_size), options.chunk_size, options.repeats)
    print(table(values, targets={}))
    write(options.output, settings, values)


if __name__ == "__main__":
    sys.exit(main())
