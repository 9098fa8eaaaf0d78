"""Methods of fine-tuning from few labels: what is drawn, run and written."""

import json

import numpy as np
import pytest
from training_fixtures import reset_accelerate

from training import compare_finetuning
from training.comparison.finetuning import FewLabels


def test_arms_are_judged_beside_the_first_method():
    contest = FewLabels(None, None, ["ce", "{name: core_tuning, eta: 1.0}"], [1], 1, [0, 1])
    labels = np.array([0, 1, 1, 0])
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    half = np.where([[True], [True], [False], [False]], right, wrong)
    arms = contest.arms_of(1, {"ce": [half, half], "{name: core_tuning, eta: 1.0}": [right, half]}, labels)
    judged = arms["{name: core_tuning, eta: 1.0}, 1"]
    assert judged["system"] == "core_tuning" and judged["control"] in arms
    assert judged["minus_control"]["accuracy"]["mean"] == pytest.approx(0.25)
    assert [run["accuracy"] for run in judged["runs"]] == [1.0, 0.5] and "system" not in arms["ce, 1"]


def test_it_runs_and_writes_what_the_table_reads(run_folder, tmp_path, capsys):
    reset_accelerate()
    output = tmp_path / "methods.json"
    checkpoint = ["--checkpoint", str(run_folder / "model")]
    arguments = ["--shots", "2", "--num-steps", "2", "--seeds", "2", "--methods", "ce", "core_tuning"]
    assert compare_finetuning.main([*checkpoint, *arguments, "--output", str(output)]) == 0
    stored = json.loads(output.read_text())
    assert set(stored["arms"]) == {"ce, 2", "core_tuning, 2"} and stored["dataset"] == "digits"
    assert stored["arms"]["core_tuning, 2"]["minus_control"]["accuracy"]["low"] is not None
    assert "2 label(s) per class, seed 1, core_tuning: " in capsys.readouterr().out
    assert compare_finetuning.main([*checkpoint, "--shots", "0"]) == 1
    assert "--shots 0 must be at least 1" in capsys.readouterr().err
    assert compare_finetuning.main([*checkpoint, "--methods", "cee", "--num-steps", "1"]) == 1
    assert "has no key 'cee'" in capsys.readouterr().err
