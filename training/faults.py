"""
Does a training on this machine lose anything? Small runs are killed, starved of disk space and damaged, and must end
with the very weights of a run that was left alone.

    python -m training.faults [FAULT ...] [--tries 5] [--folder DIR] [--seed 0]

Prints how many of the faults it tried each run survived; ends with 1 if one did not. Takes some minutes. `--folder` is
where the runs lie, so that a network disk can be tried; by default a temporary folder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .command import TERMINATED, announce, command, parser_of


DIGITS_YAML = Path(__file__).parent / "configs" / "digits.yaml"
# A model of ten thousand parameters, an epoch of 4 batches, and little to evaluate.
SMALL = {
    "model.hidden_size": 16,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 1,
    "model.num_attention_heads": 2,
    "model.projection_hidden_size": 16,
    "model.projection_dim": 8,
    "model.depth_hidden_size": 8,
    "model.num_depth_groups": 2,
    "data.validation_fraction": 0.9,
    "optimization.batch_size": 32,
    "optimization.num_steps": 12,
    "optimization.num_warmup_steps": 2,
    "logging.trackers": "[]",
    "logging.log_every": 5,
    "logging.evaluate_every": 6,
    "logging.checkpoint_every": 4,
    "evaluation.max_images": 60,
    "evaluation.num_samples": 4,
    "evaluation.suite": "[discrimination,likelihood,out_of_distribution,generation,health]",
    "evaluation.num_scored_samples": 0,
    "evaluation.num_draws": 1,
    "evaluation.num_out_of_distribution": 20,
}
WEIGHTS = [Path(name) / "model.safetensors" for name in ("last", "model")]
# Bytes that a file may grow to where the disk is full: less than weights, less than moments.
LIMITS = (20_000, 60_000)


# What happens to files.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: tuple[Callable[[Path], None], ...] = (cut, flip_a_bit, empty, Path.unlink)


# What happens to processes.


@dataclass
class Accident:
    """
    Args:
        kind: "kill" (SIGKILL), "terminate" (SIGTERM) or "full" (no file grows beyond `limit` bytes any more).
        event: at which of the events that touch the files of the run, from 1; 0 for none.
    """

    kind: str
    event: int
    limit: int = 0

    def happen(self) -> None:
        if self.kind == "full":
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        else:
            os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGTERM)


def _process(folder: Path, accident: Accident) -> None:
    """A run of the command line as a user starts it; what it does to its files is listed in `FOLDER.events.json`."""
    output = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    import torch

    from .pretrain import main

    torch.set_num_threads(1)
    events, prefix = [], str(folder) + os.sep

    def note(event: str, arguments: tuple) -> None:
        is_file = event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and arguments
        if is_file and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(prefix):
            events.append(f"{event} {os.fspath(arguments[0]).removeprefix(prefix)}")
            if len(events) == accident.event:
                accident.happen()

    sys.addaudithook(note)
    values = SMALL | {"evaluation.suite": "[]", "output_dir": folder}
    status = main([str(DIGITS_YAML), *(f"{key}={value}" for key, value in values.items())])
    Path(f"{folder}.events.json").write_text(json.dumps(events))
    sys.exit(status)


class Trial:
    """
    Runs in a folder, and the one that they are compared with.

    Args:
        folder: an empty one.
        tries: of each fault that is drawn at random.
        seed: of these draws.

    Attributes:
        whole: the folder of a run that was left alone.
        events: what that run did to its files, in order.
        seconds: that it took.
    """

    def __init__(self, folder: Path, tries: int, seed: int):
        self.folder, self.tries, self.random = folder, tries, random.Random(seed)
        self.processes = multiprocessing.get_context("forkserver")
        # Forked from a process that has imported these, which takes longer than a run.
        self.processes.set_forkserver_preload(["training.pretraining.loop", "training.evaluation.suite"])
        self.num_runs = 0
        self.whole = self.new_run()
        self.run(self.whole)  # which starts the server
        shutil.rmtree(self.whole)
        began = time.perf_counter()
        if self.run(self.whole) != 0:
            raise ValueError(f"A run that was left alone fails: {Path(f'{self.whole}.log').read_text()[-2000:]}")
        self.seconds = time.perf_counter() - began
        self.events: list[str] = json.loads(Path(f"{self.whole}.events.json").read_text())

    def new_run(self) -> Path:
        self.num_runs += 1
        return self.folder / f"run_{self.num_runs}"

    def start(self, folder: Path, accident: Accident | None = None):
        process = self.processes.Process(target=_process, args=(folder, accident or Accident("none", 0)))
        process.start()
        return process

    def run(self, folder: Path, accident: Accident | None = None) -> int:
        """The status of a run that starts, or goes on, in a folder; negative where a signal ended it."""
        process = self.start(folder, accident)
        process.join()
        return process.exitcode

    def signalled(self, folder: Path, number: int) -> int:
        """The status of a run that gets a signal at a random moment."""
        process = self.start(folder)
        process.join(self.random.uniform(0, self.seconds))
        if process.is_alive():
            os.kill(process.pid, number)
        process.join()
        return process.exitcode

    def survived(self, folder: Path, status: int = 0, expected: tuple[int, ...] = (0,)) -> bool:
        """Whether a run ended as it should, the same command goes on to its end, and the weights are the right ones."""
        if status not in expected:
            return False
        if not (folder / "README.md").exists() and self.run(folder) != 0:
            return False
        return all((folder / path).read_bytes() == (self.whole / path).read_bytes() for path in WEIGHTS)

    def some(self, events: list[int]) -> list[int]:
        return sorted(self.random.sample(events, min(self.tries, len(events))))


# The faults: each gives whether a run survived, try after try.


def killed(trial: Trial):
    """SIGKILL at random moments, up to three times in one run."""
    for _ in range(trial.tries):
        folder = trial.new_run()
        status = [trial.signalled(folder, signal.SIGKILL) for _ in range(trial.random.randint(1, 3))]
        # A run that came to its end refuses to begin anew.
        yield trial.survived(folder, status[0], (0, -signal.SIGKILL))


def killed_while_writing(trial: Trial):
    """SIGKILL at the moment before a file is opened, made or removed."""
    for event in trial.some([i for i, name in enumerate(trial.events, 1) if not name.startswith("os.rename")]):
        folder = trial.new_run()
        yield trial.survived(folder, trial.run(folder, Accident("kill", event)), (-signal.SIGKILL,))


def killed_in_a_replacement(trial: Trial):
    """SIGKILL before each of the moves by which a state or a checkpoint takes its place."""
    for event, name in enumerate(trial.events, 1):
        if name.startswith("os.rename"):
            folder = trial.new_run()
            yield trial.survived(folder, trial.run(folder, Accident("kill", event)), (-signal.SIGKILL,))


def terminated(trial: Trial):
    """SIGTERM at random moments, and in the middle of writing."""
    for _ in range(trial.tries):
        folder = trial.new_run()
        yield trial.survived(folder, trial.signalled(folder, signal.SIGTERM), (0, -signal.SIGTERM, TERMINATED))
    for event in trial.some([i for i, name in enumerate(trial.events, 1) if "state.partial" in name]):
        folder = trial.new_run()
        yield trial.survived(folder, trial.run(folder, Accident("terminate", event)), (0, TERMINATED))


def disk_full(trial: Trial):
    """From some moment on no file can grow beyond a limit; the run ends with an error, and goes on without it."""
    for limit in LIMITS:
        for event in trial.some([i for i, name in enumerate(trial.events, 1) if "open log.jsonl" in name]):
            folder = trial.new_run()
            yield trial.survived(folder, trial.run(folder, Accident("full", event, limit)), (0, 1))


def damaged(trial: Trial):
    """Each file of the newest state is cut, has a bit flipped, is emptied or deleted; the state before is there."""
    stopped = trial.new_run()
    seals = [i for i, name in enumerate(trial.events, 1) if name == "os.rename state.partial"]
    if trial.run(stopped, Accident("kill", seals[1] + 1)) != -signal.SIGKILL:
        yield False
        return
    for path in sorted((stopped / "state").iterdir()):
        for damage in DAMAGES:
            folder = trial.new_run()
            shutil.copytree(stopped, folder)
            damage(folder / "state" / path.name)
            yield trial.survived(folder)


FAULTS = {
    fault.__name__: fault
    for fault in (killed, killed_while_writing, killed_in_a_replacement, terminated, disk_full, damaged)
}


def table(outcomes: dict[str, list[bool]]) -> str:
    """How many runs of each fault survived, by its name."""
    width = max(map(len, ["fault", *outcomes]))
    rows = [("fault", "tried", "survived")]
    rows += [(name.replace("_", " "), str(len(found)), str(sum(found))) for name, found in outcomes.items()]
    return "\n".join(f"{name:{width}}  {tried:>5}  {survived:>8}" for name, tried, survived in rows)


def all_survived(outcomes: dict[str, list[bool]]) -> bool:
    """Whether every run of every fault survived, and there were some."""
    return bool(outcomes) and all(found and all(found) for found in outcomes.values())


@command
def main(arguments: list[str]) -> int:
    parser = parser_of("training.faults", __doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"some of {', '.join(FAULTS)}; by default all")
    parser.add_argument("--tries", type=int, default=5, help="of each fault that is drawn at random")
    parser.add_argument("--folder", type=Path, help="where the runs lie; what is written there is removed")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    options = parser.parse_args(arguments)
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"unknown fault {min(unknown)}; choose among {', '.join(FAULTS)}")
    if options.tries < 1:
        parser.error(f"--tries {options.tries} must be at least 1")
    # Of the semaphores that a killed process leaves, which is no news here.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="faults_", dir=options.folder) as folder:
        announce("Training a run that is left alone ...")
        trial = Trial(Path(folder).resolve(), options.tries, options.seed)
        for name in options.faults or FAULTS:
            announce(f"{name}: {FAULTS[name].__doc__}")
            outcomes[name] = list(FAULTS[name](trial))
            print(f"survived {sum(outcomes[name])} of {len(outcomes[name])}", flush=True)
    print(table(outcomes))
    return 0 if all_survived(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
