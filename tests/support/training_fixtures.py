"""What the tests of training share: the smallest runs there are."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate_fixtures import reset_accelerate

from training import finetune as finetune_command
from training.config import PretrainConfig, load_config
from training.data import splits
from training.evaluation.subject import Subject
from training.faults import DIGITS_YAML, SMALL
from training.pretraining import run as runs
from training.pretraining.checkpoints import resume
from training.pretraining.loop import train
from training.pretraining.output_folder import open_output_dir
from training.pretraining.processes import main_process_first, prepare_accelerator
from training.pretraining.run import Run


ROOT = Path(__file__).parents[2]
# Starts two processes of a script, or of a module after "-m".
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def small_overrides(output_dir: Path, **overrides) -> list[str]:
    """Command-line overrides of digits.yaml; a keyword `data__dataset` sets `data.dataset`."""
    values = {**SMALL, "output_dir": output_dir, **{key.replace("__", "."): v for key, v in overrides.items()}}
    return [f"{key}={value}" for key, value in values.items()]


def small_config(output_dir: Path, **overrides) -> PretrainConfig:
    return load_config(DIGITS_YAML, small_overrides(output_dir, **overrides))


_SPLITS = {}


def load_splits_once(config, model, max_images=0):
    """Digits are converted once, not by every run."""
    if config.dataset != splits.DIGITS:
        return splits.load_splits(config, model, max_images)
    sizes = (model.image_size, model.num_channels, model.num_levels)
    key = f"{replace(config, clusters=None)} {sizes} {max_images if config.streaming else 0}"
    if key not in _SPLITS:
        _SPLITS[key] = splits.load_splits(config, model, max_images)
    return _SPLITS[key]


def finetune(folder: Path, *arguments) -> int:
    """The command on the model of a run folder."""
    reset_accelerate()
    return finetune_command.main(["--checkpoint", str(folder / "model"), "--use_cpu", *map(str, arguments)])


def start(config: PretrainConfig) -> Run:
    """What `pretrain` does before the training."""
    reset_accelerate()
    accelerator = prepare_accelerator(config)
    with main_process_first():
        if accelerator.is_main_process:
            open_output_dir(config)
    with mock.patch.object(runs, "load_splits", load_splits_once):
        run = Run(config, accelerator)
    resume(run)
    return run


def train_whole(config: PretrainConfig) -> Run:
    run = start(config)
    train(run)
    return run


class Killed(BaseException):
    pass


def train_until(config, num_passes: int, monkeypatch) -> None:
    """A run that ends without warning at the beginning of pass number `num_passes`, counted from here."""
    step, count = Run.step, iter(range(num_passes))

    def step_or_die(self, *batch):
        if next(count, None) is None:
            raise Killed
        return step(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "step", step_or_die)
        train_whole(config)


# Draws nothing, so that it does not matter which process computes an image.
WITHOUT_DRAWS = {"augmentation__num_clean_views": 2, "augmentation__num_augmented_views": 0, "model__hidden_dropout": 0}


def join_group(rank: int, num_processes: int) -> None:
    """Tell Accelerate of the process group that this process is a member of."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= ranks | dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], str(num_processes))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # asked for, though the group exists


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal weights, whoever added the gradients up in which order."""
    assert one.keys() == other.keys()
    for name in one:
        # The bias of keys changes no attention: its gradient is rounding, which Adam makes as large as any other.
        if not name.endswith("qkv_proj.bias"):
            # Rows of a queue are features, in which the rounding of weights has grown.
            atol = 5e-6 if name.endswith("queue.rows") else 1e-6
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=atol, msg=name)


def log_lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "data_wait_share")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "model"):
        assert (one / name / "model.safetensors").read_bytes() == (other / name / "model.safetensors").read_bytes()
    assert log_lines(one) == log_lines(other)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_in_repository(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    """A process as users start them, with one thread; the limit is for one that hangs, not for a busy machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)


def launch(output_dir: Path, *launcher: str, **overrides) -> subprocess.CompletedProcess:
    """A run of the command line."""
    command = [*(launcher or (sys.executable,)), "-m", "training.pretrain", str(DIGITS_YAML)]
    return run_in_repository([*command, *small_overrides(output_dir, **overrides)])


class GivenRows(Subject):
    """A subject whose features, pixels, labels and the like are given, and do not come from a model and images."""

    def __init__(self, **given):
        self.__dict__ |= {"_probes": {}} | given
