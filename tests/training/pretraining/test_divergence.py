"""The pass that made a loss infinite is kept, and computed again by the command that the message names."""

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import DIGITS_YAML, files_of, reset_accelerate, small_config, small_overrides, train_whole

from training import replay
from training.command import DIVERGED
from training.pretrain import main
from training.pretraining import loop
from training.pretraining.log import require_finite
from training.pretraining.run import Run


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_that_diverges_names_a_command_that_shows_where(tmp_path, capsys, one_thread, accumulation):
    overrides = {"optimization__learning_rate": 1e20, "optimization__gradient_accumulation_steps": accumulation}
    arguments = small_overrides(tmp_path, optimization__num_warmup_steps=0, **overrides)
    assert main([str(DIGITS_YAML), *arguments]) == DIVERGED
    told = capsys.readouterr().err
    assert "to compute it again: python -m training.replay" in told
    described = json.loads((tmp_path / "diverged" / "process_0.json").read_text())
    # The first update is the one that is too large.
    assert described["step"] == 2 and described["position"] == [[0, accumulation]] and "loss" in described["values"]
    assert described["weights"] == "those of step 0, from the seed, trained on"
    kept = load_file(tmp_path / "diverged" / "process_0.safetensors")
    assert kept["pixel_values"].shape == (2, 32, 1, 8, 8) and kept["view_kinds"].tolist() == [0, 1]

    before = {name: content for name, content in files_of(tmp_path).items() if name != "run.lock"}
    reset_accelerate()
    command = shlex.split(re.search("again: (python .*)", told)[1])
    assert command[:3] == ["python", "-m", "training.replay"] and replay.main(command[3:]) == 0
    told = capsys.readouterr().out
    assert "Step 2: loss nan" in told or "Step 2: loss inf" in told
    assert "Weights before it that are not finite: none." in told and "Gradients that are not finite: encoder." in told
    after = files_of(tmp_path)
    assert {name: content for name, content in after.items() if name in before and name != "log.jsonl"} == {
        name: content for name, content in before.items() if name != "log.jsonl"
    }


def test_it_goes_on_from_the_last_state_to_the_very_batch(tmp_path, monkeypatch, capsys, one_thread):
    """An accident of step 7, which comes after the state of step 4, and its views."""
    config, seen = small_config(tmp_path), []

    def inputs(self, levels, sample_ids=None, draw=Run.inputs):
        found = draw(self, levels, sample_ids)
        if self.passes[-1].step == 7:
            seen.append(found["pixel_values"].clone())
            self.bare_model.objective.register_forward_hook(lambda *_: (torch.tensor(float("nan")), {}))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Run, "inputs", inputs)
        with pytest.raises(FloatingPointError, match=r"At step 8.*loss is nan.*The pass is that of step 7, kept as"):
            train_whole(config)
    kept = load_file(tmp_path / "diverged" / "process_0.safetensors")
    assert all(torch.equal(views, kept["pixel_values"]) for views in seen) and len(seen) == 1
    reset_accelerate()
    assert replay.main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    # Here nothing poisons it.
    assert "Resuming from step 4" in told and "Step 7: loss" in told and "nan" not in told
    assert "Gradients that are not finite: none." in told


def test_a_validation_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path, monkeypatch):
    """Else no model would ever be the best, and the evaluation at the end would find none."""
    config = small_config(tmp_path, logging__evaluate_every=4)
    healthy = {"validation/effective_rank": 9.0, "validation/feature_std": 1.0}
    monkeypatch.setattr(loop, "validate", lambda run: healthy | {"validation/loss": float("nan")})
    with pytest.raises(FloatingPointError, match=r"At step 4, validation/loss is nan"):
        train_whole(config)
    assert not (tmp_path / "state").exists() and '"validation' not in (tmp_path / "log.jsonl").read_text()
    with pytest.raises(FloatingPointError, match="validation/loss is inf"):
        require_finite({"validation/loss": float("inf")}, 4, small_config(tmp_path, optimization__precision="fp16"))


def test_there_is_nothing_to_replay(tmp_path, capsys, one_thread):
    train_whole(small_config(tmp_path, optimization__num_steps=1))
    reset_accelerate()
    assert replay.main([str(tmp_path)]) == 1
    assert "no pass of this run was infinite" in capsys.readouterr().err
    assert replay.main([str(tmp_path / "nowhere")]) == 1
