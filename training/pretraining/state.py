"""
The state of a run on disk: written with checksums, read only where it is whole, and never as code.

`state` is the newest one, `state.retired` the one before. Tensors are written by torch's distributed checkpoint, each
process its part, as safetensors: any number of processes reads them, with or without FSDP. Beside them, and the random
states that Accelerate writes, there are two files:

    progress.json       schedules, and `Progress`
    checksums.json      SHA-256 of every file
"""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as checkpoint
from accelerate.utils import load
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from ..plain_files import read_json, require_plain
from .output_folder import recover_folder, retired_of


logger = logging.getLogger(__name__)
PROGRESS, CHECKSUMS = "progress.json", "checksums.json"
# What AdamW keeps of a parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
# Of states that earlier versions wrote, in the order of what they held.
_LEGACY = "custom_checkpoint_{}.pkl"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(state: Path) -> None:
    """Write the checksums of all files of a state, the last thing that is written into it."""
    checksums = {path.name: sha256(path) for path in sorted(state.iterdir())}
    (state / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n")


def damage_of(state: Path) -> str | None:
    """The first thing that is wrong with a state: a file that changed, is missing, or holds more than plain values."""
    try:
        # A state without checksums is one of an earlier version.
        checksums = read_json(state / CHECKSUMS) if (state / CHECKSUMS).exists() else {}
        for name, checksum in checksums.items():
            path = state / name
            if not path.exists():
                return f"{path} is missing"
            if sha256(path) != checksum:
                return f"{path} is not what was written"
        for path in sorted(state.iterdir()):
            require_plain(path)
    except ValueError as error:
        return str(error)
    return None


def recover_state(state: Path) -> None:
    """
    Leave a whole state in its place, if there is one: where the newest is damaged, it becomes `state.damaged`, and the
    one before takes its place.

    Raises:
        ValueError: the newest state is damaged, and there is none before it that is whole.
    """
    recover_folder(state)
    if not state.is_dir():
        return
    if (damage := damage_of(state)) is not None:
        before = retired_of(state)
        damage_before = damage_of(before) if before.is_dir() else "missing"
        if damage_before is not None:
            raise ValueError(
                f"The newest state of the run is damaged ({damage}), and so is the one before ({damage_before}). "
                f"Remove {state} and {before} to begin anew, or choose another output_dir."
            )
        aside = state.with_name(f"{state.name}.damaged")
        logger.warning("The newest state is damaged (%s): kept as %s; the one before it is used.", damage, aside)
        shutil.rmtree(aside, ignore_errors=True)
        state.rename(aside)
        before.rename(state)
    _upgrade(state)


def save_tensors(state: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Weights and moments, by all processes together."""
    tensors = _tensors(model, optimizers)
    writer = HuggingFaceStorageWriter(str(state), save_distributed=True)
    with _as_one_process_or_many() as no_dist:
        checkpoint.save(tensors, storage_writer=writer, no_dist=no_dist)


def load_tensors(state: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """What [`save_tensors`] has written, whatever number of processes it was."""
    reader = HuggingFaceStorageReader(str(state))
    saved = reader.read_metadata().state_dict_metadata
    parameters = dict(model.named_parameters())
    for i, optimizer in enumerate(optimizers):
        for name, parameter in parameters.items():
            keys = [key for key in _MOMENTS if f"optimizer_{i}.{key}.{name}" in saved]
            if keys:
                optimizer.state[parameter] = {
                    key: torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
                    for key in keys
                }
    tensors = _tensors(model, optimizers)
    with _as_one_process_or_many() as no_dist:
        checkpoint.load(tensors, storage_reader=reader, no_dist=no_dist)


@contextmanager
def _as_one_process_or_many() -> Iterator[bool]:
    """Gives `no_dist`, without the warning that there is one process; what failed is raised as it was there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield not torch.distributed.is_initialized()
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error


def _tensors(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """By name; those without dimension, which safetensors does not slice, with one."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for parameter, of_parameter in optimizer.state.items():
            tensors |= {f"optimizer_{i}.{key}.{names[parameter]}": part for key, part in of_parameter.items()}
    return {name: tensor.detach().view(1) if tensor.dim() == 0 else tensor for name, tensor in tensors.items()}


def save_progress(state: Path, schedules: list[dict], progress: dict) -> None:
    (state / PROGRESS).write_text(json.dumps({"schedules": schedules, "progress": progress}) + "\n")


def load_progress(state: Path) -> tuple[list[dict], dict]:
    """What `save_progress` was given."""
    saved = read_json(state / PROGRESS)
    progress = saved["progress"]
    if "positions" in progress:  # of an earlier version: one of each process, all the same unless streamed
        positions = progress.pop("positions")
        progress |= {"num_processes": len(positions), "position": positions[:1]}
    return saved["schedules"], progress


def _upgrade(state: Path) -> None:
    """Schedules and progress as earlier versions wrote them, the progress last -> progress.json."""
    legacy = [state / _LEGACY.format(i) for i in range(len(list(state.glob(_LEGACY.format("*")))))]
    if legacy and not (state / PROGRESS).exists():
        *schedules, progress = (load(path) for path in legacy)
        save_progress(state, schedules, progress)
    for path in legacy:
        path.unlink()
