"""A run does what it says: every step, every file, and the very same after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from training_fixtures import (
    DIGITS_YAML,
    Killed,
    assert_same_run,
    log_lines,
    reset_accelerate,
    small_config,
    small_overrides,
    start,
    train_until,
    train_whole,
)
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from training.config import load_config
from training.pretrain import main, pretrain
from training.pretraining.log import describe
from training.pretraining.output_folder import open_output_dir
from training.pretraining.processes import prepare_accelerator
from training.pretraining.run import Run


ROOT = DIGITS_YAML.parents[2]


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
    overrides = {"optimization__gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
    if streaming:
        # 1437 images, the first 60 of them for validation: an epoch of 5 batches.
        overrides |= {"data__streaming": True, "data__shuffle_buffer": 500, "optimization__batch_size": 256}
    config = small_config(tmp_path / "killed", **overrides)
    for num_passes in kills:
        train_until(config, num_passes, monkeypatch)
    train_whole(config)
    assert_same_run(whole_run(**overrides), tmp_path / "killed")


STATEFUL = {
    "mochi": "{name: mochi, queue_size: 100, num_hard: 16}",
    "nnclr": "{name: nnclr, queue_size: 100}",
    "swav": "{name: swav, queue_size: 100}",
    "isogclr": "{name: isogclr}",
    "clip": "{name: clip}",
}


@pytest.mark.parametrize("name", STATEFUL)
def test_state_of_an_objective_resumes_exactly(tmp_path, monkeypatch, whole_run, name):
    """Queues, momentum encoder, prototypes and temperatures, after kills in the middle of an epoch and between two."""
    overrides = {"model__objective": STATEFUL[name]}
    config = small_config(tmp_path, **overrides)
    for num_passes in (6, 5):
        train_until(config, num_passes, monkeypatch)
    train_whole(config)
    assert_same_run(whole_run(**overrides), tmp_path)
    weights = load_file(tmp_path / "last" / "model.safetensors")
    state = {key: weight for key, weight in weights.items() if key.startswith("objective.")}
    started = start(small_config(tmp_path / "other", **overrides)).bare_model.state_dict()
    assert state and any(not torch.equal(value, started[key]) for key, value in state.items())


def test_evaluating_does_not_change_the_training(tmp_path, whole_run):
    train_whole(small_config(tmp_path, logging__evaluate_every=1))
    weights = [folder / "last" / "model.safetensors" for folder in (whole_run(), tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# Kills in the middle of writing.


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_leftovers_of_a_kill_do_no_harm(tmp_path, monkeypatch, whole_run):
    """Half-written folders, old ones that were about to go, and a torn line of the log."""
    folder = tmp_path / "killed"
    config = small_config(folder)
    train_until(config, 9, monkeypatch)
    for name in ("state", "model"):
        shutil.copytree(folder / name, folder / f"{name}.partial")
        (folder / f"{name}.partial" / "model.safetensors").write_bytes(b"half")
        (folder / f"{name}.partial" / "of_another_version.bin").write_bytes(b"")
        shutil.copytree(folder / name, folder / f"{name}.retired")
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 9, "loss": 4.1}\n{"step": 10, "lo')
    train_whole(config)
    assert_same_run(whole_run(), folder)
    assert not list(folder.glob("*.partial")) and not list(folder.glob("*.retired"))
    assert not list(folder.rglob("of_another_version.bin"))


@pytest.mark.parametrize(("name", "step"), [("state", 4), ("model", 8)])
def test_a_kill_between_the_two_moves_of_a_replacement(tmp_path, monkeypatch, whole_run, name, step):
    """The old folder has been moved away, the new one not yet into its place."""
    folder = tmp_path / "killed"
    config = small_config(folder)
    rename = Path.rename

    def rename_or_die(self, target):
        if self.name == f"{name}.partial" and (folder / f"{name}.retired").exists():
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", rename_or_die)
        train_whole(config)
    assert not (folder / name).exists()
    assert start(config).progress.step == step and (folder / name).exists()
    train_whole(config)
    assert_same_run(whole_run(), folder)


def test_a_kill_before_the_first_checkpoint_starts_anew(tmp_path, monkeypatch, whole_run):
    config = small_config(tmp_path / "killed", logging__log_every=1)
    train_until(config, 3, monkeypatch)
    assert len(log_lines(tmp_path / "killed")) == 3 and not (tmp_path / "killed" / "state").exists()
    train_whole(config)
    steps = [row["step"] for row in log_lines(tmp_path / "killed") if "loss" in row]
    assert steps == list(range(1, 13))


def test_best_model_and_its_loss_survive_a_kill(tmp_path, monkeypatch):
    """The best step is the first evaluation: a resumed run must not take a later one for better."""
    config = small_config(tmp_path, logging__evaluate_every=2)
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.0, 2.0, 2.0])
    healthy = {"validation/effective_rank": 9.0, "validation/feature_std": 1.0}
    monkeypatch.setattr(Run, "validate", lambda self: healthy | {"validation/loss": next(losses)})
    train_until(config, 9, monkeypatch)
    best = files_of(tmp_path / "model")
    run = train_whole(config)
    assert run.progress.best_validation_loss == 1.0
    assert files_of(tmp_path / "model") == best


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    train_until(config, 6, monkeypatch)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match=r"1 process\(es\), which cannot go on exactly on 2"):
        start(config)


# The output folder.


def test_output_folder_of_another_run_is_refused_by_the_names_that_differ(tmp_path):
    open_output_dir(small_config(tmp_path))
    other = small_config(tmp_path, seed=1, model__contrastive_weight=0.5)
    with pytest.raises(ValueError, match=r"model\.contrastive_weight, seed; .*overwrite=true"):
        open_output_dir(other)
    open_output_dir(small_config(tmp_path))


def test_finished_run_is_refused_and_may_be_overwritten(tmp_path):
    config = small_config(tmp_path / "run")
    open_output_dir(config)
    (tmp_path / "run" / "evaluation.json").write_text("{}")
    open_output_dir(config)  # killed before its card was written: not finished, so it goes on
    (tmp_path / "run" / "README.md").write_text("the card")
    with pytest.raises(ValueError, match="finished run"):
        open_output_dir(config)
    open_output_dir(replace(config, overwrite=True))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    open_output_dir(config)  # goes on with what overwrite=true began


def test_a_moved_run_is_still_the_same(tmp_path):
    open_output_dir(small_config(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    open_output_dir(small_config(tmp_path / "there"))
    assert load_config(tmp_path / "there" / "config.yaml") == small_config(tmp_path / "there")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml"])
def test_foreign_files_are_never_touched(tmp_path, name, overwrite):
    (tmp_path / name).write_text("years: of work")
    with pytest.raises(ValueError, match="choose another one"):
        open_output_dir(replace(small_config(tmp_path), overwrite=overwrite))
    assert (tmp_path / name).read_text() == "years: of work"


def test_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not a run's"):
        open_output_dir(small_config(tmp_path / "file"))


# The loop.


def test_every_step_is_logged_once_and_the_last_one_always(tmp_path):
    train_whole(small_config(tmp_path, optimization__num_steps=3, logging__log_every=5, logging__evaluate_every=100))
    training, validation = log_lines(tmp_path)
    assert training["step"] == validation["step"] == 3
    assert {"loss", "contrastive_loss", "generative_loss", "bits_per_dim", "gradient_norm", "learning_rate"} <= set(
        training
    )
    assert {"validation/loss", "validation/bits_per_dim", "validation/knn_accuracy"} <= set(validation)
    assert training["loss"] == pytest.approx(training["generative_loss"] + 0.3 * training["contrastive_loss"], rel=1e-5)


def test_learning_rate_warms_up_and_falls_to_its_share(tmp_path):
    overrides = {"optimization__final_learning_rate_share": 0.1, "logging__log_every": 1}
    train_whole(small_config(tmp_path, **overrides))
    rates = [row["learning_rate"] for row in log_lines(tmp_path) if "learning_rate" in row]
    peak = 3e-3
    assert rates[:2] == pytest.approx([peak / 2, peak])
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0.1 * peak)


def test_accumulated_batches_equal_a_large_one_for_the_likelihood(tmp_path):
    clean = {"augmentation__num_augmented_views": 0, "model__contrastive_weight": 0, "model__hidden_dropout": 0}
    overrides = clean | {"optimization__num_steps": 4, "logging__log_every": 1}
    large = train_whole(small_config(tmp_path / "large", optimization__batch_size=64, **overrides))
    overrides |= {"optimization__batch_size": 32, "optimization__gradient_accumulation_steps": 2}
    small = train_whole(small_config(tmp_path / "small", **overrides))
    # AdamW turns the rounding of a gradient close to zero into a visible step; the norms below are the sharper test.
    for one, other in zip(large.bare_model.parameters(), small.bare_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for one, other in zip(log_lines(tmp_path / "large"), log_lines(tmp_path / "small"), strict=True):
        for name in {"loss", "gradient_norm", "bits_per_dim"} & set(one):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name


def test_description_counts_negatives_and_warns(tmp_path):
    def described(config) -> str:
        run = start(config)
        return describe(config, run.accelerator, run.bare_model, run.splits.train, run.views)

    overrides = {"augmentation__num_augmented_views": 2, "optimization__gradient_accumulation_steps": 4}
    told = described(small_config(tmp_path / "a", **overrides))
    # 3 views of 32 images: of 95 other rows, 2 are views of the same image.
    assert "2 positive(s) and 93 negative(s)" in told and "143 training images of 1x8x8" in told
    assert "adds no negatives" in told
    assert "no augmentation" not in told

    ranges = ["rotation_degrees", "shift", "shear_degrees", "noise"]
    off = {f"augmentation__{name}": 0 for name in ranges} | {
        f"augmentation__{name}": "[]" for name in ("scale", "gamma", "erase_area")
    }
    told = described(small_config(tmp_path / "b", **off))
    assert "no augmentation is switched on" in told and "adds no negatives" not in told


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path, monkeypatch):
    config = small_config(tmp_path, logging__log_every=100)
    train_until(config, 6, monkeypatch)
    kept = files_of(tmp_path / "state")

    def poison(self, *batch, step=Run.step):
        if self.progress.step == 6:
            torch.nn.init.constant_(next(self.model.parameters()), float("nan"))
        return step(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match=r"step 8.*loss is nan.*learning_rate"):
        patch.setattr(Run, "step", poison)
        train_whole(config)
    assert files_of(tmp_path / "state") == kept
    assert train_whole(config).progress.step == 12


def test_bf16_trains(tmp_path):
    overrides = {"optimization__precision": "bf16", "optimization__num_steps": 3}
    run = train_whole(small_config(tmp_path, **overrides))
    assert {parameter.dtype for parameter in run.bare_model.parameters()} == {torch.float32}
    assert log_lines(tmp_path)[-1]["step"] == 3


def test_gradient_checkpointing_changes_nothing(tmp_path):
    overrides = {"optimization__num_steps": 3}
    plain = train_whole(small_config(tmp_path / "a", **overrides))
    saving = train_whole(small_config(tmp_path / "b", optimization__gradient_checkpointing=True, **overrides))
    for one, other in zip(plain.bare_model.parameters(), saving.bare_model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_compiled_training_equals_plain(tmp_path):
    overrides = {"logging__log_every": 1, "model__hidden_dropout": 0, "logging__evaluate_every": 100}
    plain = train_whole(small_config(tmp_path / "a", **overrides))
    compiled = train_whole(small_config(tmp_path / "b", optimization__compile=True, **overrides))
    for row, other in zip(log_lines(tmp_path / "a"), log_lines(tmp_path / "b"), strict=True):
        for name in {"contrastive_loss", "generative_loss", "validation/loss"} & set(row):
            assert other[name] == pytest.approx(row[name], rel=1e-3), (row["step"], name)
    assert plain.bare_model.state_dict().keys() == compiled.bare_model.state_dict().keys()


def test_weight_decay_spares_vectors_and_tables(tmp_path):
    run = start(small_config(tmp_path))
    decayed, kept = ({id(p) for p in group["params"]} for group in run.optimizers[0].param_groups)
    names = {id(p): name for name, p in run.bare_model.named_parameters()}
    assert decayed | kept == set(names) and not decayed & kept
    assert all(run.bare_model.get_parameter(names[i]).dim() >= 2 for i in decayed)
    spared = {names[i] for i in kept}
    assert any("position" in name for name in spared) and any("code_embedding" in name for name in spared)
    assert all(name in spared for name in names.values() if name.endswith("bias"))


# Trackers.


def test_tensorboard_is_written(tmp_path):
    pretrain(small_config(tmp_path, logging__trackers="[tensorboard]", optimization__num_steps=2), "a test")
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(("tracker", "said"), [("wanbd", "it is unknown"), ("swanlab", "is not installed")])
def test_trackers_that_cannot_be_used(tmp_path, tracker, said):
    with pytest.raises(ValueError, match=rf"{tracker!r} cannot be used, {said}|{said}"):
        prepare_accelerator(small_config(tmp_path, logging__trackers=f"[{tracker}]"))


# Whole runs in this process.


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        ({"model__encoder_attention": "bidirectional", "model__generative_weight": 0}, "bits_per_dim"),
        ({"model__contrastive_weight": 0}, None),
        ({"model__encoder_attention": "two_pass"}, None),
    ],
    ids=["contrastive only", "generative only", "two passes"],
)
def test_each_kind_of_model_runs_to_its_card(tmp_path, overrides, missing):
    reset_accelerate()
    pretrain(small_config(tmp_path, optimization__num_steps=2, **overrides), "python -m training.pretrain x.yaml")
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert missing is None or missing not in results
    assert "linear_accuracy" in results and "ood_auroc" in results
    assert "python -m training.pretrain x.yaml" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("streaming", [False, True])
def test_unlabelled_photographs_train_without_probes(tmp_path, monkeypatch, streaming):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "photos").mkdir()
    for i in range(80):
        pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{i}.png")
    reset_accelerate()
    config = small_config(
        tmp_path / "run",
        data__dataset="imagefolder",
        data__arguments__data_dir=tmp_path / "photos",
        data__validation_fraction=0.2,
        data__streaming=streaming,
        model__num_channels=3,
        optimization__num_steps=3,
        optimization__batch_size=16,
        evaluation__max_images=20,
    )
    pretrain(config, "a test")
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert "bits_per_dim" in results and "linear_accuracy" not in results
    assert (tmp_path / "run" / "README.md").exists()


def test_the_wrapped_model_goes_before_the_process_group(tmp_path, monkeypatch):
    """The other way round, two processes hang at their end in one run of a few."""
    run = train_whole(small_config(tmp_path, optimization__num_steps=1))
    wrapped = weakref.ref(run.model)
    gone = []
    monkeypatch.setattr(Accelerator, "end_training", lambda self: gone.append(wrapped() is None))
    run.close()
    assert gone == [True]


def test_splits_that_are_too_small(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=1400 on each of 1 process"):
        train_whole(small_config(tmp_path / "a", optimization__batch_size=1400))
    with pytest.raises(ValueError, match=r"validation split of 1 image\(s\) is too small"):
        start(small_config(tmp_path / "b", data__validation_fraction=0.0001))


def run_main(output_dir: Path, **overrides) -> int:
    reset_accelerate()
    return main([str(DIGITS_YAML), *small_overrides(output_dir, **overrides)])


def test_an_interrupt_is_no_accident(tmp_path, monkeypatch, capsys, whole_run):
    def step_or_interrupt(self, *batch, step=Run.step):
        if self.progress.step == 7:
            raise KeyboardInterrupt
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step_or_interrupt)
        assert run_main(tmp_path) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert run_main(tmp_path) == 0
    assert_same_run(whole_run(), tmp_path)
    assert run_main(tmp_path) == 1
    assert "error: " in (told := capsys.readouterr().err) and "finished run" in told


def test_usage(capsys):
    for arguments, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
    assert "training/configs/digits.yaml" in capsys.readouterr().out
    assert main(["nowhere.yaml"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err


# Whole runs as users start them.


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(output_dir: Path, *launcher: str, **overrides) -> list[str]:
    launcher = launcher or (sys.executable, "-m")
    return [*launcher, "training.pretrain", str(DIGITS_YAML), *small_overrides(output_dir, **overrides)]


def launch(output_dir: Path, *launcher: str, **overrides) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(output_dir, *launcher, **overrides),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def launched_run(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run of the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("launched")
    done = launch(folder, logging__trackers="[tensorboard]")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_command_line_leaves_all_that_the_design_names(launched_run):
    folder, printed = launched_run
    assert load_config(folder / "config.yaml") == small_config(folder, logging__trackers="[tensorboard]")
    for name in ("samples", "completions", "features", "training_curves", "likelihood"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    results = json.loads((folder / "evaluation.json").read_text())
    assert results["train_seconds"] > 0 and results["seed"] == 0
    assert results["command"].startswith("python -m training.pretrain ")
    assert (folder / "README.md").read_text().startswith("---\n")
    assert (folder / "state").is_dir() and (folder / "last" / "model.safetensors").exists()
    assert [row["step"] for row in log_lines(folder)] == [4, 5, 6, 8, 10, 12, 12]
    for auto_class in (
        AutoModel,
        AutoModelForPreTraining,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
    ):
        auto_class.from_pretrained(folder / "model")
    AutoImageProcessor.from_pretrained(folder / "model")
    for noise in ("Warning", "set_vital", "pin_memory", "Writing model shards", "Loading weights", "Converting"):
        assert noise not in printed, printed


def test_a_killed_run_ends_as_if_undisturbed(launched_run, tmp_path):
    whole, _ = launched_run
    overrides = {"logging__trackers": "[tensorboard]"}
    killed = subprocess.Popen(command(tmp_path, **overrides), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    while not (tmp_path / "state").exists():
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    assert "Resuming from step" in launch(tmp_path, **overrides).stdout
    assert_same_run(whole, tmp_path)


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        TORCHRUN,
        (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", "-m"),
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers(tmp_path, launcher):
    done = launch(tmp_path, *launcher, optimization__num_steps=3)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "evaluation.json").read_text())["bits_per_dim"] > 0
    AutoModel.from_pretrained(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "of_both, of_two",
    [({}, {}), ({}, {"optimization__chunk_size": 5}), ({"optimization__separate_moments": "true"}, {})],
    ids=["plain", "chunks", "separate moments"],
)
def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path, of_both, of_two):
    """Deterministic views and no dropout: negatives and gradients of both processes together are those of one."""
    off = {f"augmentation__{name}": 0 for name in ("rotation_degrees", "shift", "shear_degrees", "noise")}
    off |= {f"augmentation__{name}": "[]" for name in ("scale", "gamma", "erase_area")}
    overrides = off | {"model__hidden_dropout": 0, "optimization__num_steps": 4, "model__contrastive_weight": 1.0}
    overrides |= of_both
    done = launch(tmp_path / "two", *TORCHRUN, **overrides | of_two | {"optimization__batch_size": 16})
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout and "1 positive(s) and 62 negative(s)" in done.stdout
    train_whole(small_config(tmp_path / "one", optimization__batch_size=32, **overrides))
    one, two = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4, msg=name)
    for row, other in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        for name in {"loss", "contrastive_loss", "validation/generative_loss"} & set(row):
            assert other[name] == pytest.approx(row[name], rel=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_resume_exactly(tmp_path, streaming):
    overrides = {"optimization__batch_size": 16}
    if streaming:
        overrides |= {"data__streaming": True, "data__shuffle_buffer": 500, "optimization__batch_size": 128}
    assert launch(tmp_path / "whole", *TORCHRUN, **overrides).returncode == 0
    killed = subprocess.Popen(
        command(tmp_path / "killed", *TORCHRUN, **overrides),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "killed" / "state").exists():
        assert killed.poll() is None
        time.sleep(0.001)
    for process in [*psutil.Process(killed.pid).children(recursive=True), killed]:
        process.kill()
    killed.wait()
    done = launch(tmp_path / "killed", *TORCHRUN, **overrides)
    assert done.returncode == 0 and "Resuming from step" in done.stdout, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["output folder", "data"])
def test_every_process_ends_when_the_main_one_refuses(tmp_path, fault):
    overrides = {}
    if fault == "data":
        overrides["data__image_column"] = "picture"
    else:
        (tmp_path / "thesis.tex").write_text("years of work")
    begun = time.perf_counter()
    done = launch(tmp_path, *TORCHRUN, **overrides)
    assert done.returncode != 0 and "error: " in done.stderr
    assert time.perf_counter() - begun < 60
