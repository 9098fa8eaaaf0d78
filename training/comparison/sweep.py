"""Many runs of `training.pretrain`, each in a process and a folder of its own: what is finished is not repeated."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..command import DIVERGED, Terminated
from ..config import PretrainConfig, differences, load_config
from ..plain_files import read_json


@dataclass(frozen=True)
class PlannedRun:
    """A configuration file with overrides, and the folder that its run goes to. Mistakes in them are told here."""

    config: Path
    overrides: tuple[str, ...]
    folder: Path

    def __post_init__(self):
        self.load_config()

    @property
    def arguments(self) -> list[str]:
        return [str(self.config), *self.overrides, f"output_dir={self.folder}"]

    @property
    def is_finished(self) -> bool:
        return (self.folder / "README.md").exists()  # the card, which a run writes last

    @property
    def has_diverged(self) -> bool:
        """With these very values."""
        return self._mark_of_divergence.exists() and not self._changed()

    @property
    def _mark_of_divergence(self) -> Path:
        return self.folder / "diverged"

    def load_config(self) -> PretrainConfig:
        return load_config(self.arguments[0], self.arguments[1:])

    def _changed(self) -> list[str]:
        """Keys whose values differ from those of the run that the folder holds."""
        return differences(load_config(self.folder / "config.yaml"), self.load_config())

    def evaluation(self) -> dict:
        """`evaluation.json` of the finished run."""
        return read_json(self.folder / "evaluation.json")

    def per_image(self) -> dict[str, np.ndarray]:
        """`per_image.npz` of the finished run."""
        with np.load(self.folder / "per_image.npz") as arrays:
            return dict(arrays)

    def execute(self, num_threads: int, running: set[subprocess.Popen]) -> str | None:
        """
        Start, resume or leave alone; what the run says goes to a file beside its folder. `None`, or its error.

        Args:
            running: holds the process of the run for as long as it runs.
        """
        log = self.folder.with_name(f"{self.folder.name}.log")
        if self.is_finished or self._mark_of_divergence.exists():
            if changed := self._changed():
                return f"{self.folder} holds a run with other values of {', '.join(changed)}; remove it"
            return f"{self.folder} diverged; see {log}" if self.has_diverged else None
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "training.pretrain", *self.arguments]
        with open(log, "w") as file:
            environment = os.environ | {"OMP_NUM_THREADS": str(num_threads)}
            with subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment) as process:
                running.add(process)
                code = process.wait()
                running.remove(process)
        if code == DIVERGED:
            self._mark_of_divergence.touch()
            return f"{self.folder} diverged; see {log}"
        return None if code == 0 else f"{' '.join(command)} ended with {code}; see {log}"


def threads_of(jobs: int) -> int:
    """Threads of each of `jobs` runs at a time, which share those of this process (`OMP_NUM_THREADS`, or all cores)."""
    return max(1, torch.get_num_threads() // jobs)


def execute(planned: list[PlannedRun], jobs: int) -> dict[PlannedRun, str]:
    """
    Execute the runs, `jobs` at a time; the errors of those that failed.

    Raises:
        Terminated: SIGTERM came. It was passed on to the runs, which have saved where they stand.
    """
    num_threads, errors, running = threads_of(jobs), {}, set()
    with ThreadPoolExecutor(jobs) as pool:

        def end(*_) -> None:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise Terminated("Ended by SIGTERM. What is finished is kept; the same command goes on from there.")

        before = signal.signal(signal.SIGTERM, end)
        try:
            ended = pool.map(lambda run: run.execute(num_threads, running), planned)
            for run, error in zip(planned, ended, strict=True):
                print(error or f"{run.folder} is finished.", flush=True)
                errors |= {run: error} if error else {}
        finally:
            signal.signal(signal.SIGTERM, before)
    return errors
