"""A run that was killed ends as if it had never been disturbed: the same weights and the same log, byte by byte."""

import json
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file
from training_fixtures import (
    DIGITS_YAML,
    ROOT,
    TORCHRUN,
    Killed,
    assert_same_run,
    files_of,
    launch,
    log_lines,
    run_in_repository,
    small_config,
    small_overrides,
    start,
    train_until,
    train_whole,
)

from training.command import Terminated
from training.pretrain import main
from training.pretraining import loop
from training.pretraining.loop import train
from training.pretraining.run import Run


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
    assert state and any((value - started[key]).abs().max() > 1e-3 for key, value in state.items())


def asked_to_end_after(step: int, monkeypatch) -> None:
    """SIGTERM comes while the pass before this step is computed."""

    def pass_with_a_signal(self, *batch, run_pass=Run.step):
        metrics = run_pass(self, *batch)
        if self.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Run, "step", pass_with_a_signal)


@pytest.mark.parametrize("step", [3, 12])
def test_sigterm_saves_at_once_and_the_end_is_the_same(tmp_path, monkeypatch, whole_run, step):
    config, before = small_config(tmp_path), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(Terminated, match=f"at step {step}, which is saved"):
        asked_to_end_after(step, patch)
        run = start(config)
        with run.termination:
            train(run)
    assert signal.getsignal(signal.SIGTERM) == before
    assert start(config).progress.step == step
    train_whole(config)
    for name in ("last", "model"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            whole_run() / name / "model.safetensors"
        ).read_bytes()


def test_sigterm_ends_the_command_with_its_own_code(tmp_path, monkeypatch, capsys, one_thread):
    asked_to_end_after(3, monkeypatch)
    assert main([str(DIGITS_YAML), *small_overrides(tmp_path / "run")]) == 75
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "run" / "README.md").exists()


# Kills in the middle of writing.


def test_leftovers_of_a_kill_do_no_harm(tmp_path, monkeypatch, whole_run):
    """Half-written folders, old ones that were about to go, and a torn line of the log."""
    folder = tmp_path / "killed"
    config = small_config(folder)
    train_until(config, 9, monkeypatch)
    for name in ("state", "model"):
        shutil.copytree(folder / name, folder / f"{name}.partial")
        (folder / f"{name}.partial" / "model.safetensors").write_bytes(b"half")
        (folder / f"{name}.partial" / "of_another_version.bin").write_bytes(b"")
        shutil.copytree(folder / name, folder / f"{name}.retired", dirs_exist_ok=True)
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 9, "loss": 4.1}\n{"step": 10, "lo')
    train_whole(config)
    assert_same_run(whole_run(), folder)
    assert not list(folder.glob("*.partial"))
    assert [path.name for path in folder.glob("*.retired")] == ["state.retired"]  # kept, should the newest be damaged
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


@pytest.mark.parametrize(
    ("what", "limit", "named"),
    [("save_state", 20_000, "state"), ("save_state", 60_000, "state"), ("save_model", 20_000, "model")],
    ids=["weights", "moments", "model"],
)
def test_a_full_disk_is_told_and_costs_nothing_that_was_saved(tmp_path, monkeypatch, whole_run, what, limit, named):
    """A limit on the size of files stands in for it, and for itself; it comes when there is a state of step 4."""
    resource = pytest.importorskip("resource")
    config, limits = small_config(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    save = getattr(loop, what)

    def save_within_limits(run, *arguments):
        if run.progress.step > 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        return save(run, *arguments)

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=rf"{named} cannot be written.*ulimit -f.*goes on"),
    ):
        patch.setattr(loop, what, save_within_limits)
        try:
            train_whole(config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("*.partial"))
    assert start(config).progress.step == 4
    train_whole(config)
    assert_same_run(whole_run(), tmp_path)


@pytest.mark.parametrize("what", ["log", "end_training"])
def test_a_full_disk_is_told_where_a_tracker_meets_it(tmp_path, monkeypatch, what):
    def refuse(self, *_, **__):
        raise OSError(28, "No space left on device")

    run = start(small_config(tmp_path, optimization__num_steps=1))
    monkeypatch.setattr(Accelerator, what, refuse)
    with pytest.raises(OSError, match=r"pretrain cannot be written .*No space left.*free some space"):
        train(run)
        run.close()


def test_best_model_and_its_loss_survive_a_kill(tmp_path, monkeypatch):
    """The best step is the first evaluation: a resumed run must not take a later one for better."""
    config = small_config(tmp_path, logging__evaluate_every=2)
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.0, 2.0, 2.0])
    healthy = {"validation/effective_rank": 9.0, "validation/feature_std": 1.0}
    monkeypatch.setattr(loop, "validate", lambda run: healthy | {"validation/loss": next(losses)})
    train_until(config, 9, monkeypatch)
    best = files_of(tmp_path / "model")
    run = train_whole(config)
    assert run.progress.best_validation_loss == 1.0
    assert files_of(tmp_path / "model") == best


# Real kills of real processes.


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
# To one process alone, which must tell the other.
TERMINATE_SECOND = 'os.environ["RANK"] == "1" and os.kill(os.getpid(), signal.SIGTERM)'


def killed_before_step_7(folder: Path, *launcher: str, kill: str = KILL, **overrides) -> int:
    """How a run of the command line ends whose processes kill themselves there, two steps after a checkpoint."""
    script = folder.parent / "killed.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys

            from training.pretrain import main
            from training.pretraining.run import Run


            def step_or_die(self, *batch, step=Run.step):
                if self.progress.step == 6:
                    KILL
                return step(self, *batch)


            Run.step = step_or_die
            sys.exit(main())
            """
        ).replace("KILL", kill)
    )
    command = [*(launcher or (sys.executable,)), str(script), str(DIGITS_YAML), *small_overrides(folder, **overrides)]
    return run_in_repository(command, PYTHONPATH=str(ROOT)).returncode


def test_a_killed_run_ends_as_if_undisturbed(launched_run, tmp_path, capsys, one_thread):
    """The same command goes on, here with as many threads as the process had that was killed."""
    overrides = {"logging__trackers": "[tensorboard]", "evaluation__suite": "[likelihood]"}
    assert killed_before_step_7(tmp_path / "killed", **overrides) == -signal.SIGKILL
    assert main([str(DIGITS_YAML), *small_overrides(tmp_path / "killed", **overrides)]) == 0
    assert "Resuming from step 4" in capsys.readouterr().out
    assert_same_run(launched_run[0], tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_resume_exactly(tmp_path, streaming):
    overrides = {"optimization__batch_size": 16}
    if streaming:
        overrides |= {"data__streaming": True, "data__shuffle_buffer": 500, "optimization__batch_size": 128}
    assert launch(tmp_path / "whole", *TORCHRUN, **overrides).returncode == 0
    assert killed_before_step_7(tmp_path / "killed", *TORCHRUN, **overrides) != 0
    assert (tmp_path / "killed" / "state").exists() and not (tmp_path / "killed" / "evaluation.json").exists()
    done = launch(tmp_path / "killed", *TORCHRUN, **overrides)
    assert done.returncode == 0 and "Resuming from step" in done.stdout, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_saves_both(tmp_path):
    overrides = {"optimization__batch_size": 16}
    assert launch(tmp_path / "whole", *TORCHRUN, **overrides).returncode == 0
    assert killed_before_step_7(tmp_path / "ended", *TORCHRUN, kill=TERMINATE_SECOND, **overrides) != 0
    assert json.loads((tmp_path / "ended" / "state" / "progress.json").read_text())["progress"]["step"] == 10
    done = launch(tmp_path / "ended", *TORCHRUN, **overrides)
    assert done.returncode == 0 and "Resuming from step 10" in done.stdout, done.stderr
    for name in ("last", "model"):
        weights = [(tmp_path / run / name / "model.safetensors").read_bytes() for run in ("whole", "ended")]
        assert weights[0] == weights[1]
