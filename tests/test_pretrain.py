"""A run does what it says: every step, every file, and the very same after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_fixtures import DIGITS_YAML, small_config, small_overrides, start, train_whole

from training.pretrain import Run


ROOT = Path(__file__).parent.parent


class Killed(BaseException):
    pass


def train_until(config, num_passes: int, monkeypatch) -> None:
    """A run that ends without warning at the beginning of pass number `num_passes`, counted from here."""
    step, count = Run.step, iter(range(num_passes))

    def step_or_die(self, levels):
        if next(count, None) is None:
            raise Killed
        return step(self, levels)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "step", step_or_die)
        train_whole(config)


def log_lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "model"):
        assert (one / name / "model.safetensors").read_bytes() == (other / name / "model.safetensors").read_bytes()
    assert log_lines(one) == log_lines(other)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run with these overrides that was never disturbed; trained once."""
    folders = {}

    def run(**overrides) -> Path:
        key = str(overrides)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("whole")
            train_whole(small_config(folders[key], **overrides))
        return folders[key]

    return run


# Passes until each kill; an epoch has 4, a checkpoint comes after 4 steps.
@pytest.mark.parametrize(
    ("accumulation", "streaming", "kills"),
    [
        (1, False, (2, 3)),
        (1, False, (7, 2)),
        (1, False, (8, 1)),
        (2, False, (9, 3)),
        (2, False, (14, 5, 5)),
        (1, True, (7, 2)),
    ],
)
def test_resume_is_exact_from_any_pass(tmp_path, monkeypatch, whole_run, accumulation, streaming, kills):
    overrides = {"optimization__gradient_accumulation_steps": accumulation}
    if streaming:
        # 1437 images, the first 60 of them for validation: an epoch of 5 batches.
        overrides |= {"data__streaming": True, "data__shuffle_buffer": 500, "optimization__batch_size": 256}
    config = small_config(tmp_path / "killed", **overrides)
    for num_passes in kills:
        train_until(config, num_passes, monkeypatch)
    train_whole(config)
    assert_same_run(whole_run(**overrides), tmp_path / "killed")
