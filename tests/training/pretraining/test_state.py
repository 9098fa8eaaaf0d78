"""The state of a run: what is damaged is named and the one before is used; nothing in it, or beside it, is run."""

import io
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_fixtures import assert_same_run, small_config, start, train_until, train_whole
from transformers import AutoModel, AutoModelForPreTraining

from modeling_hybrid import HybridForOutOfDistributionDetection
from training import evaluate, finetune
from training.comparison.sweep import PlannedRun
from training.faults import DAMAGES, empty, flip_a_bit
from training.pretraining.state import CHECKSUMS, damage_of, seal


# What the first of one process writes of weights and moments.
SHARD = "shard-00001-model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory) -> Path:
    """A run of 12 steps that ended at step 9, with states of the steps 8 and 4."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        train_until(small_config(folder), 9, patch)
    return folder


@pytest.fixture
def run_folder(stopped_run, tmp_path) -> Path:
    shutil.copytree(stopped_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [SHARD, "progress.json", "random_states_0.pkl", CHECKSUMS])
def test_any_damage_is_found_and_its_file_named(run_folder, name, damage):
    state = run_folder / "state"
    assert damage_of(state) is None
    damage(state / name)
    if (damage, name) == (Path.unlink, CHECKSUMS):  # as states of earlier versions are
        assert damage_of(state) is None
    else:
        assert str(state / (name if name != CHECKSUMS or damage is not flip_a_bit else "")) in damage_of(state)


def test_json_that_would_exhaust_the_stack_is_named(run_folder):
    (run_folder / "state" / "progress.json").write_text("[" * 100_000)
    (run_folder / "state" / CHECKSUMS).unlink()
    seal(run_folder / "state")
    assert "progress.json is no JSON" in damage_of(run_folder / "state")


def test_a_damaged_state_is_set_aside_and_the_one_before_gives_the_same_end(run_folder, whole_run, caplog):
    flip_a_bit(run_folder / "state" / SHARD)
    with caplog.at_level(logging.WARNING):
        train_whole(small_config(run_folder))
    assert f"state/{SHARD} is not what was written" in caplog.text
    assert (run_folder / "state.damaged" / SHARD).exists()
    assert_same_run(whole_run(), run_folder)


def test_two_damaged_states_are_refused_and_named(run_folder):
    empty(run_folder / "state" / "random_states_0.pkl")
    (run_folder / "state.retired" / SHARD).unlink()
    with pytest.raises(ValueError, match=rf"random_states_0\.pkl is not what.*retired/{SHARD} is missing"):
        start(small_config(run_folder))
    assert (run_folder / "state" / SHARD).exists()


# Security.


class Planted:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


# What loading a checkpoint cannot do without.
READ = ("model.safetensors", "config.json", "preprocessor_config.json")


def planted(marker: Path) -> list[bytes]:
    """A pickle that makes the file `marker` when it is read: bare, and in a file as torch writes it."""
    file = io.BytesIO()
    torch.save({"step": Planted(marker)}, file)
    return [pickle.dumps(Planted(marker)), file.getvalue()]


def test_the_planted_pickle_would_work(tmp_path):
    for i, content in enumerate(planted(tmp_path / "marker")):
        pickle.loads(content) if i == 0 else torch.load(io.BytesIO(content), weights_only=False)
        (tmp_path / "marker").unlink()


def test_nothing_in_a_state_is_run_even_with_the_right_checksum(run_folder, tmp_path):
    marker = tmp_path / "marker"
    shutil.rmtree(run_folder / "state.retired")
    intact = tmp_path / "intact"
    shutil.copytree(run_folder / "state", intact)
    names = [path.name for path in intact.iterdir() if path.name != CHECKSUMS]
    # What Accelerate, or an earlier version of ours, would read where it found it.
    for name in [*names, "custom_checkpoint_0.pkl", "pytorch_model.bin", "scheduler.bin", "sampler.bin", "scaler.pt"]:
        for content in planted(marker):
            shutil.rmtree(run_folder / "state")
            shutil.copytree(intact, run_folder / "state")
            (run_folder / "state" / CHECKSUMS).unlink()
            (run_folder / "state" / name).write_bytes(content)
            if name == "custom_checkpoint_0.pkl":
                (run_folder / "state" / "progress.json").unlink()
            seal(run_folder / "state")
            with pytest.raises(ValueError, match=rf"state/{name} (holds something else|is no JSON)"):
                start(small_config(run_folder))
            assert not marker.exists(), name


@pytest.mark.parametrize("content", [0, 1])
def test_no_file_of_a_run_folder_is_run(run_folder, tmp_path, content, capsys):
    """Pickles in the place of every file, one at a time, and of files that libraries look for; every command."""
    marker = tmp_path / "marker"
    data, pickled = small_config(run_folder), planted(marker)[content]
    (run_folder / "evaluation.json").write_text("{}")
    intact = tmp_path / "intact"
    shutil.copytree(run_folder, intact)
    files = [path.relative_to(intact) for path in intact.rglob("*") if path.is_file()]
    files = [path for path in files if not path.parts[0].startswith("state") and path.suffix != ".py"]
    added = [Path("model") / name for name in ("pytorch_model.bin", "training_args.bin", "custom_generate/generate.py")]
    overrides = ["evaluation.suite=[health]", "evaluation.max_images=60"]
    for path in [*files, *added]:
        shutil.rmtree(run_folder)
        shutil.copytree(intact, run_folder)
        if path in added:
            (run_folder / "model" / "model.safetensors").unlink()
        (run_folder / path).parent.mkdir(exist_ok=True)
        (run_folder / path).write_bytes(pickled)
        checkpoint = str(run_folder / "model")
        if (path.parent == Path("model") and path.name in READ) or path in added:
            out = str(tmp_path / "results")
            capsys.readouterr()
            assert evaluate.main([checkpoint, "--output-dir", out, *overrides]) == 1, path
            assert finetune.main(["--checkpoint", checkpoint, "--output_dir", out]) == 1, path
            assert capsys.readouterr().err.count("error: ") == 2
        elif path.name == "config.yaml":
            with pytest.raises(ValueError, match=r"config\.yaml"):
                start(data)
            assert evaluate.main([checkpoint]) == 1
        elif path.name == "log.jsonl":
            with pytest.raises(ValueError, match=r"log\.jsonl, line 1"):
                start(data)
        elif path.name == "evaluation.json":
            with pytest.raises(ValueError):
                PlannedRun(run_folder / "config.yaml", (), run_folder).evaluation()
        assert not marker.exists(), path


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForPreTraining, HybridForOutOfDistributionDetection])
def test_no_weights_are_run_where_a_model_or_a_detector_is_loaded(run_folder, tmp_path, auto):
    (run_folder / "model" / "model.safetensors").unlink()
    for content in planted(tmp_path / "marker"):
        (run_folder / "model" / "pytorch_model.bin").write_bytes(content)
        with pytest.raises((pickle.UnpicklingError, OSError, ValueError)):
            auto.from_pretrained(run_folder / "model")
        assert not (tmp_path / "marker").exists()


def test_no_array_of_values_per_image_is_run(run_folder, tmp_path):
    np.savez(run_folder / "per_image.npz", groups=np.array([Planted(tmp_path / "marker")]))
    with pytest.raises(ValueError, match="allow_pickle"):
        PlannedRun(run_folder / "config.yaml", (), run_folder).per_image()
    assert not (tmp_path / "marker").exists()
