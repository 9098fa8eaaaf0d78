"""
Memory of each process of a run: whole models (DDP) beside sharded ones (FSDP2).

    python -m training.benchmarks.processes [--processes 2] [--output processes.json] [section.key=value ...]

What is run are two steps of `training/configs/digits.yaml` with a wider and deeper model (`WIDE`), with gloo on the
CPU in fp32, on this machine; every process has its own batch of 2 images, which are small, so that what counts is what
is kept of the weights: themselves, gradients, moments, buckets.

    weights_mib         Of all weights in fp32, as a measure.
    ddp_R_mib           The most that process R holds during the steps, beyond what it held before it built the model.
    fsdp_R_mib          The same with FSDP2.
    ratio               The largest of FSDP2 over the largest of DDP.

`--output` is one flat JSON object: the setting and these values; `_mib` is 2^20 bytes. Linux only.
"""

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from ..command import add_overrides, command, overrides_of, parser_of
from .measure import add_options, begin, free_port, peak_since_now, resident, table, write


DIGITS_YAML = Path(__file__).parents[1] / "configs" / "digits.yaml"
WIDE = [
    "model.hidden_size=1024",
    "model.num_encoder_layers=4",
    "model.num_decoder_layers=2",
    "model.num_attention_heads=8",
    "optimization.batch_size=2",
    "optimization.num_steps=2",
    "logging.trackers=[]",
]


def member(rank: int, num_processes: int, is_sharded: bool, port: int, overrides: list[str], folder: str) -> None:
    os.environ |= {"ACCELERATE_USE_FSDP": str(is_sharded), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], str(num_processes))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    from ..config import load_config
    from ..pretraining.processes import prepare_accelerator
    from ..pretraining.run import Run

    config = load_config(DIGITS_YAML, [*WIDE, *overrides, f"output_dir={folder}"])
    accelerator = prepare_accelerator(config)
    before = resident()
    run = Run(config, accelerator)
    ctypes.CDLL(None).malloc_trim(0)  # what was needed to build it

    def steps():
        for levels, sample_ids in run.batches():
            run.step(levels, sample_ids)

    peak = peak_since_now(steps)
    weights = run.bare_model.num_parameters() * 4 / 2**20
    Path(folder, f"{rank}.json").write_text(json.dumps({"peak": peak - before, "weights": weights}))
    run.close()


def compare(num_processes: int, overrides: list[str]) -> dict[str, float]:
    values = {}
    for name in ("ddp", "fsdp"):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (num_processes, name == "fsdp", free_port(), overrides, folder)
            torch.multiprocessing.start_processes(member, arguments, num_processes, start_method="spawn")
            found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(num_processes)]
        values |= {"weights_mib": found[0]["weights"]}
        values |= {f"{name}_{rank}_mib": of_rank["peak"] for rank, of_rank in enumerate(found)}
    largest = [max(values[f"{name}_{rank}_mib"] for rank in range(num_processes)) for name in ("fsdp", "ddp")]
    return values | {"ratio": largest[0] / largest[1]}


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.benchmarks.processes", __doc__)
    add_options(parser, output="processes.json", repeats=1)
    parser.add_argument("--processes", type=int, default=2)
    add_overrides(parser)
    options = parser.parse_intermixed_args(arguments)
    settings = begin(options, processes=options.processes)
    values = compare(options.processes, overrides_of(options))
    print(table(values, targets={}))
    write(options.output, settings, values)


if __name__ == "__main__":
    sys.exit(main())
