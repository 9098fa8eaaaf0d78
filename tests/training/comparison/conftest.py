"""What the tests of comparisons share."""

import subprocess
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from types import SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import pytest
from training_fixtures import load_splits_once, reset_accelerate

from training import pretrain
from training.comparison import sweep
from training.pretraining import run as runs
from training.reports import pictures


@pytest.fixture
def in_this_process(monkeypatch, one_thread):
    """
    The runs of a sweep one after the other, without a process for each, which would import everything anew; and without
    pictures, which take as long as all the rest.
    """

    def save_nothing(figure, path):
        path.write_bytes(b"")
        plt.close(figure)

    @contextmanager
    def run(command, stdout, **_):
        assert command[1:3] == ["-m", "training.pretrain"]
        reset_accelerate()
        with redirect_stdout(stdout), redirect_stderr(stdout), mock.patch.object(pictures, "save", save_nothing):
            code = pretrain.main(command[3:])
        yield mock.Mock(wait=lambda: code)

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(Popen=run, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(sweep, "ThreadPoolExecutor", lambda jobs: nullcontext(SimpleNamespace(map=map)))
    monkeypatch.setattr(runs, "load_splits", load_splits_once)
