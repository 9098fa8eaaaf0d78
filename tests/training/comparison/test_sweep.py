"""Every run of a sweep is a process of its own, and one that fails stops no other."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import psutil
import pytest
from training_fixtures import DIGITS_YAML, SMALL

from training.command import Terminated
from training.comparison.sweep import PlannedRun, execute
from training.pretraining import loop


@pytest.mark.slow
def test_runs_are_processes_beside_each_other(tmp_path, capsys):
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    overrides += ["optimization.num_steps=1", "evaluation.suite=[likelihood]"]
    good, bad = (PlannedRun(DIGITS_YAML, tuple(overrides), tmp_path / name) for name in ("good", "bad"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "thesis.tex").write_text("years of work")
    errors = execute([good, bad], jobs=2)
    assert good.is_finished and good.evaluation()["bits_per_dim"] > 0
    assert "training images" in (tmp_path / "good.log").read_text()
    error = errors.pop(bad)
    assert not errors
    assert "training.pretrain" in error and f"ended with 1; see {tmp_path / 'bad.log'}" in error
    assert "error: " in (tmp_path / "bad.log").read_text() and not bad.is_finished
    assert capsys.readouterr().out.splitlines() == [f"{good.folder} is finished.", error]
    assert not bad.has_diverged
    # What is finished is left alone.
    finished = (good.folder / "evaluation.json").stat().st_mtime_ns
    assert execute([good], jobs=1) == {} and (good.folder / "evaluation.json").stat().st_mtime_ns == finished


def test_a_run_that_diverges_is_not_repeated(tmp_path, in_this_process, monkeypatch):
    def diverge(run):
        raise FloatingPointError("At step 1, loss is nan.")

    monkeypatch.setattr(loop, "train", diverge)
    overrides = tuple(f"{key}={value}" for key, value in SMALL.items())
    run = PlannedRun(DIGITS_YAML, overrides, tmp_path / "run")
    said = f"{run.folder} diverged; see {tmp_path / 'run.log'}"
    assert execute([run], jobs=1) == {run: said} and run.has_diverged and not run.is_finished
    log = tmp_path / "run.log"
    assert "loss is nan" in log.read_text()
    log.unlink()
    assert execute([run], jobs=1) == {run: said} and not log.exists()
    other = PlannedRun(DIGITS_YAML, (*overrides, "seed=1"), run.folder)
    assert execute([other], jobs=1) == {other: f"{run.folder} holds a run with other values of seed; remove it"}
    assert not other.has_diverged


def test_runs_end_with_the_command_that_started_them(tmp_path, monkeypatch):
    waits = tmp_path / "python"
    waits.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\nexec sleep 600\n")
    waits.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(waits))
    runs = [PlannedRun(DIGITS_YAML, (), tmp_path / "runs" / str(number)) for number in range(3)]

    def started() -> list[int]:
        file = Path(tmp_path / "started")
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def end_when_two_have_started():
        while len(started()) < 2:
            sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before, began = signal.getsignal(signal.SIGTERM), monotonic()
    Thread(target=end_when_two_have_started, daemon=True).start()
    with subprocess.Popen(["sleep", "600"]) as no_run:
        with pytest.raises(Terminated, match="the same command goes on"):
            execute(runs, jobs=2)
        survived = no_run.poll() is None
        no_run.kill()
    assert survived
    assert monotonic() - began < 300 and len(started()) == 2  # the third never started
    assert not any(psutil.pid_exists(process) for process in started())
    assert signal.getsignal(signal.SIGTERM) is before
