"""An evaluation whose questions fail, or whose results cannot be written: what was answered before is kept."""

import json

import numpy as np
import pytest
import torch
from training_fixtures import small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training import evaluate
from training.config import save_config
from training.evaluation.questions import health
from training.faults import cut, empty


@pytest.fixture
def call(tmp_path, one_thread) -> list[str]:
    """The arguments of an evaluation with two questions, of a model in the folder of its run."""
    config = small_config(tmp_path, evaluation__suite="[likelihood,health]", evaluation__max_images=40)
    torch.manual_seed(0)
    model = HybridForPreTraining(config.model_config())
    for part in (model, HybridImageProcessor.from_config(model.config)):
        part.save_pretrained(tmp_path / "model")
    save_config(config, tmp_path / "config.yaml")
    return [str(tmp_path / "model"), "--output-dir", str(tmp_path)]


def test_a_question_that_fails_stops_no_other_and_can_be_asked_again(call, tmp_path, monkeypatch, capsys):
    def found() -> dict:
        return json.loads((tmp_path / "evaluation.json").read_text())

    assert evaluate.main([*call, "--missing"]) == 1
    assert "has no evaluation.json to be completed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(health, "evaluate", lambda subject: 1 / 0)
        assert evaluate.main(call) == 1
    told = capsys.readouterr().err
    assert "health failed" in told and "Traceback" in told and f"--output-dir {tmp_path} --missing" in told
    first = found()
    assert first["failed_questions"] == {"health": "ZeroDivisionError: division by zero"}
    assert first["bits_per_dim"] > 0 and (tmp_path / "README.md").exists()

    # What has been answered is not asked again.
    monkeypatch.setattr("training.evaluation.questions.likelihood.evaluate", lambda subject: 1 / 0)
    assert evaluate.main([*call, "--missing"]) == 0
    second = found()
    assert second["failed_questions"] == {} and set(second["evaluation_seconds"]) == {"likelihood", "health"}
    assert second.keys() > first.keys() and second["bits_per_dim"] == first["bits_per_dim"]
    assert second["command"] == first["command"]
    with np.load(tmp_path / "per_image.npz") as rows:
        assert "bits_per_dim" in rows


def test_results_that_cannot_be_written_leave_the_earlier_ones(call, tmp_path, monkeypatch, capsys):
    assert evaluate.main([*call, "evaluation.suite=[health]"]) == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("evaluation.json", "per_image.npz", "README.md")}

    def fill_the_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez_compressed", fill_the_disk)
        assert evaluate.main([*call, "--missing"]) == 1
    assert "per_image.npz cannot be written" in capsys.readouterr().err
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert not list(tmp_path.glob("*.partial"))
    assert evaluate.main([*call, "--missing"]) == 0


@pytest.mark.parametrize("name", ["evaluation.json", "per_image.npz"])
def test_damaged_results_are_not_completed(call, tmp_path, capsys, name):
    assert evaluate.main([*call, "evaluation.suite=[health]"]) == 0
    for damage in (cut, empty):
        damage(tmp_path / name)
        assert evaluate.main([*call, "--missing"]) == 1
        assert "is damaged (" in (told := capsys.readouterr().err) and "leave --missing out" in told


def test_a_damaged_log_is_told_before_any_question_is_asked(call, tmp_path, monkeypatch, capsys):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n')
    monkeypatch.setattr("training.evaluation.questions.likelihood.evaluate", lambda subject: pytest.fail("asked"))
    assert evaluate.main(call) == 1
    assert "log.jsonl, line 2, is damaged" in capsys.readouterr().err
