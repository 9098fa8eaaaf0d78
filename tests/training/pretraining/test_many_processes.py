"""Several processes, with whole and with sharded models, learn what one learns, and take over from each other."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from other_processes import run_group
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from training_fixtures import (
    WITHOUT_DRAWS,
    assert_near,
    join_group,
    log_lines,
    small_config,
    start,
    train_until,
    train_whole,
)

from training.pretraining.processes import prepare_accelerator
from training.pretraining.run import Run


def noting_images(monkeypatch) -> dict[int, list[int]]:
    """The images of each step of the runs that follow, as far as this process computes them."""
    seen = {}

    def step(self, levels, sample_ids, take_step=Run.step):
        seen[self.progress.step + 1] = sample_ids.tolist()
        return take_step(self, levels, sample_ids)

    monkeypatch.setattr(Run, "step", step)
    return seen


def member(rank: int, num_processes: int, is_sharded: bool, runs: list[tuple[Path, dict]], num_passes: int) -> None:
    """One process of a group that trains these runs, whole or until so many passes are done."""
    os.environ["ACCELERATE_USE_FSDP"] = str(is_sharded)
    join_group(rank, num_processes)
    for folder, overrides in runs:
        with pytest.MonkeyPatch.context() as patch:
            seen = noting_images(patch)
            if num_passes:
                train_until(small_config(folder, **overrides), num_passes, patch)
            else:
                run = train_whole(small_config(folder, **overrides))
                assert isinstance(run.model, FSDPModule if is_sharded else DistributedDataParallel)
        (folder.parent / f"seen_by_{rank}.json").write_text(json.dumps(seen))


def train_on(
    num_processes: int, is_sharded: bool, folder: Path, overrides: dict, monkeypatch, num_passes: int = 0
) -> dict[int, list[int]]:
    """The images of each step, in the order of the processes, of a run that is whole or ends after so many passes."""
    if num_processes == 1:
        with monkeypatch.context() as patch:
            seen = noting_images(patch)
            config = small_config(folder, **overrides)
            train_until(config, num_passes, patch) if num_passes else train_whole(config)
        return seen
    (folder.parent / "group").unlink(missing_ok=True)
    run_group(member, num_processes, folder.parent, num_processes, is_sharded, [(folder, overrides)], num_passes)
    of_each = [json.loads((folder.parent / f"seen_by_{rank}.json").read_text()) for rank in range(num_processes)]
    return {int(step): [image for seen in of_each for image in seen[step]] for step in of_each[0]}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


# Taking over.


@pytest.mark.parametrize(
    ("before", "after", "is_sharded"),
    [
        (1, 2, False),
        (2, 1, True),
        pytest.param(1, 2, True, marks=pytest.mark.slow),
        pytest.param(2, 1, False, marks=pytest.mark.slow),
        pytest.param(4, 2, True, marks=pytest.mark.slow),
        pytest.param(2, 4, True, marks=pytest.mark.slow),
    ],
)
def test_another_number_goes_on_with_the_same_global_batches(tmp_path, monkeypatch, before, after, is_sharded):
    """Where nothing is drawn at random, to the same weights; an epoch has 4 global batches, the state is of step 4."""
    whole = train_on(1, False, tmp_path / "whole", WITHOUT_DRAWS, monkeypatch)
    overrides = WITHOUT_DRAWS | {"optimization__batch_size": 32 // before}
    train_on(before, is_sharded, tmp_path / "changed", overrides, monkeypatch, num_passes=6)
    assert len(list((tmp_path / "changed" / "state").glob("shard-*"))) == before
    found = train_on(after, is_sharded, tmp_path / "changed", overrides, monkeypatch)
    assert list(found) == list(range(5, 13))
    assert found == {step: whole[step] for step in found}
    assert_near(weights(tmp_path / "whole"), weights(tmp_path / "changed"))


def test_views_are_drawn_anew_by_another_number(tmp_path, monkeypatch):
    """The same at every try; as the run stood, it goes on exactly."""
    config = small_config(tmp_path)
    train_until(config, 6, monkeypatch)
    drawn = [start(config) and torch.rand(3)]
    shutil.copy(tmp_path / "state" / "random_states_0.pkl", tmp_path / "state" / "random_states_1.pkl")
    drawn += [start(config) and torch.rand(3) for _ in range(2)]
    assert torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_a_number_that_cannot_share_is_refused(tmp_path, monkeypatch):
    config = small_config(tmp_path / "table")
    train_until(config, 6, monkeypatch)
    streamed = small_config(tmp_path / "stream", data__streaming=True, optimization__batch_size=48)
    train_until(streamed, 6, monkeypatch)
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(ValueError, match=r"on 3 process\(es\): a global batch of its 32 images is not divisible"):
        start(config)
    with pytest.raises(ValueError, match=r"read in 1 lanes, which is not divisible by them; cut the data into more"):
        start(streamed)


# Learning the same.


SHORT = {"optimization__num_steps": 4, "logging__evaluate_every": 4, "logging__log_every": 1}
SEPARATE = {"optimization__separate_moments": "true"}
CHUNKS = {"optimization__chunk_size": 5}
TWO_PASSES = {"optimization__gradient_accumulation_steps": 2}
CLIP = {"model__objective": "{name: clip}"}  # it has a parameter
MOCHI = {"model__objective": "{name: mochi, queue_size: 64, num_hard: 8}"}  # a momentum encoder and a queue
CASES = {
    "joint": {},
    "separate": SEPARATE,
    "chunks": CHUNKS,
    "two passes": TWO_PASSES,
    "separate chunks": SEPARATE | CHUNKS,
    "separate, two passes": SEPARATE | TWO_PASSES,
    "chunks, two passes": CHUNKS | TWO_PASSES,
    "recomputed layers": SEPARATE | {"optimization__gradient_checkpointing": "true"},
    "clip": CLIP,
    "nnclr": {"model__objective": "{name: nnclr, queue_size: 64}"},
    "swav": {"model__objective": "{name: swav, queue_size: 64}"},
    "mochi": MOCHI,
    "clip with all": CLIP | SEPARATE | CHUNKS | TWO_PASSES,
    "mochi with all": MOCHI | SEPARATE | CHUNKS | TWO_PASSES,
}
# Of norms of gradients, where rounding has passed through the rows of a queue.
LARGER_DIFFERENCES = {"nnclr": 1e-5}
SOME = ["clip with all", "mochi", "joint"]


@pytest.mark.parametrize(
    ("num_processes", "is_sharded", "names"),
    [
        (2, True, SOME),
        (2, False, SOME[:1]),
        pytest.param(2, True, list(CASES), marks=pytest.mark.slow),
        pytest.param(2, False, list(CASES), marks=pytest.mark.slow),
        pytest.param(4, True, list(CASES), marks=pytest.mark.slow),
    ],
)
def test_several_processes_learn_what_one_learns(tmp_path, num_processes, is_sharded, names):
    """Losses, norms of gradients (before they are clipped) and weights after four steps."""
    runs = {name: WITHOUT_DRAWS | SHORT | CASES[name] for name in names}
    for name, overrides in runs.items():
        train_whole(small_config(tmp_path / "one" / name, **overrides))
    size = {"optimization__batch_size": 32 // num_processes}
    several = [(tmp_path / "several" / name, overrides | size) for name, overrides in runs.items()]
    run_group(member, num_processes, tmp_path, num_processes, is_sharded, several, 0)
    for name in names:
        one, other = tmp_path / "one" / name, tmp_path / "several" / name
        assert_near(weights(one), weights(other))
        for row, same in zip(log_lines(one), log_lines(other), strict=True):
            for key in {"loss", "contrastive_loss", "generative_loss", *(k for k in row if "norm" in k)} & set(row):
                difference = LARGER_DIFFERENCES.get(name, 2e-6) if "norm" in key else 2e-6
                assert same[key] == pytest.approx(row[key], rel=difference), (name, key)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimization__precision": "fp16"}, "precision=fp16 is untried with FSDP: .* Set precision=bf16 or fp32"),
        ({"optimization__compile": "true"}, "compile=true is untried with FSDP: .* Set compile=false"),
    ],
)
def test_what_is_untried_with_sharding_is_told(tmp_path, monkeypatch, overrides, message):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=message):
        prepare_accelerator(small_config(tmp_path, **overrides))
