"""Processes of one verb, started by `torchrun --no-python hybrid ...` or `accelerate launch --no_python hybrid ...`."""

import os


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))
