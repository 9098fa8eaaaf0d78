"""The faults that users try on their own machines: what the table says, and that a loss is noticed."""

import signal

import pytest

from training import faults
from training.faults import FAULTS, Trial, all_survived, main, table


def test_the_table_counts_what_survived():
    outcomes = {"killed": [True, True], "disk_full": [True, False, True]}
    assert table(outcomes).splitlines() == [
        "fault      tried  survived",
        "killed         2         2",
        "disk full      3         2",
    ]
    assert not all_survived(outcomes) and not all_survived({}) and not all_survived({"killed": []})
    assert all_survived({"killed": [True, True]})


@pytest.mark.parametrize(("survived", "status"), [(True, 0), (False, 1)])
def test_a_run_that_did_not_survive_is_an_error(tmp_path, monkeypatch, capsys, survived, status):
    monkeypatch.setattr(faults, "Trial", lambda *_: None)
    monkeypatch.setattr(faults, "FAULTS", {"killed": lambda trial: iter([True, survived])})
    assert main(["--folder", str(tmp_path)]) == status
    assert f"killed      2         {1 + survived}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["earthquake"], ["--tries", "0"]])
def test_usage(capsys, arguments):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "choose among killed, " in (told := capsys.readouterr().err) or "must be at least 1" in told


@pytest.fixture
def trial(tmp_path):
    """Without the run that is left alone: its weights are given."""
    trial = Trial.__new__(Trial)
    trial.folder, trial.whole = tmp_path, tmp_path / "whole"
    trial.run = lambda folder: write(folder, b"right") or 0
    write(trial.whole, b"right")
    return trial


def write(folder, weights: bytes) -> None:
    for path in faults.WEIGHTS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(weights)


def test_a_run_survives_by_its_weights(trial, tmp_path):
    assert trial.survived(tmp_path / "goes on", -signal.SIGKILL, (-signal.SIGKILL,))
    # It ended otherwise than by the fault.
    assert not trial.survived(tmp_path / "other", 1, (-signal.SIGKILL,))
    trial.run = lambda folder: 1
    assert not trial.survived(tmp_path / "does not go on")
    write(tmp_path / "finished", b"wrong")
    (tmp_path / "finished" / "README.md").write_text("")
    assert not trial.survived(tmp_path / "finished")


@pytest.mark.slow
def test_faults_of_real_processes(tmp_path, capsys):
    chosen = ["killed_in_a_replacement", "terminated", "disk_full"]
    assert main([*chosen, "--tries", "1", "--folder", str(tmp_path)]) == 0
    assert set(FAULTS) > set(chosen) and "killed in a replacement" in capsys.readouterr().out
