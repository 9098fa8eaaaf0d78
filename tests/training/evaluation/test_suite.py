"""An evaluation whose questions fail: what is answered is kept, and the rest can be asked again."""

import json

import numpy as np
import torch
from training_fixtures import small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training import evaluate
from training.config import save_config
from training.evaluation.questions import health


def test_a_question_that_fails_stops_no_other_and_can_be_asked_again(tmp_path, monkeypatch, capsys, one_thread):
    config = small_config(tmp_path, evaluation__suite="[likelihood,health]", evaluation__max_images=40)
    torch.manual_seed(0)
    model = HybridForPreTraining(config.model_config())
    for part in (model, HybridImageProcessor.from_config(model.config)):
        part.save_pretrained(tmp_path / "model")
    save_config(config, tmp_path / "config.yaml")
    call = [str(tmp_path / "model"), "--output-dir", str(tmp_path)]

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
