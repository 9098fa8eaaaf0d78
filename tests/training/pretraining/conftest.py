"""Runs that several tests of the pre-training look at, trained once."""

from pathlib import Path

import pytest
from training_fixtures import launch, small_config, train_whole


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The folder of a run with these overrides that was never disturbed."""
    folders = {}

    def run(**overrides) -> Path:
        key = str(overrides)
        if key not in folders:
            folder = tmp_path_factory.mktemp("whole")
            train_whole(small_config(folder, **overrides))
            folders[key] = folder
        return folders[key]

    return run


@pytest.fixture(scope="session")
def launched_run(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run of the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("launched")
    done = launch(folder, logging__trackers="[tensorboard]")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr
