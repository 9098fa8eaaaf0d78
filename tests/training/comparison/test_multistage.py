"""Stages: each begins with the weights before it, one batch is of one cluster, and mistakes are told."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import SMALL, load_splits_once, small_config, start

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training.comparison import multistage
from training.comparison.systems import table
from training.faults import DIGITS_YAML
from training.multistage import main


FEW = [f"{key}={value}" for key, value in SMALL.items()]
FEW += ["optimization.num_steps=2", "optimization.batch_size=8", "evaluation.suite=[likelihood]"]


def test_stages_and_what_they_give(tmp_path, in_this_process, monkeypatch, capsys):
    monkeypatch.setattr(multistage, "load_splits", load_splits_once)
    command = [str(DIGITS_YAML), *FEW, "--seeds", "1", "--output-dir", str(tmp_path), "--num-clusters", "2"]
    assert main([*command, "1"]) == 0
    found = json.loads((tmp_path / "multistage.json").read_text())
    assert found["arms"]["2"]["control"] == "1" and "linear_accuracy" in found["arms"]["2"]["minus_control"]
    assert "2 stages, features joined, batches each of one of 2 clusters, beside 2 stages" in table(found)
    first = np.load(tmp_path / "seed-0/2-clusters/stage-1.npy")
    assert set(first) == {0, 1} and not np.load(tmp_path / "seed-0/1-clusters/stage-1.npy").any()
    # A further stage goes on from what is finished, with clusters within those before.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("evaluation.json")}
    assert len(times) == 3
    assert main([*command, "--num-stages", "3"]) == 0
    second = np.load(tmp_path / "seed-0/2-clusters/stage-2.npy")
    assert np.array_equal(second // 2, first) and len(set(second)) > 2
    assert times.items() < {path: path.stat().st_mtime_ns for path in tmp_path.rglob("evaluation.json")}.items()
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-stages", "1"], "--num-stages 1 must be at least 2"),
        (["--num-clusters", "0"], "--num-clusters 0 must be at least 1"),
        (["data.streaming=true"], "data.streaming=True"),
        (["optimization.num_step=1"], "'num_steps'"),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, arguments, said):
    assert main([str(DIGITS_YAML), *FEW, *arguments, "--output-dir", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


def test_a_run_begins_with_the_weights_that_it_is_given(tmp_path):
    config = small_config(tmp_path / "none")
    torch.manual_seed(5)
    given = HybridForPreTraining(config.model_config())
    given.save_pretrained(tmp_path / "given")
    HybridImageProcessor.from_config(given.config).save_pretrained(tmp_path / "given")
    run = start(small_config(tmp_path / "run", initial_model=tmp_path / "given"))
    for name, value in load_file(tmp_path / "given/model.safetensors").items():
        assert torch.equal(run.bare_model.state_dict()[name], value), name
    # What the checkpoint has none of begins anew.
    swav = small_config(tmp_path / "swav", initial_model=tmp_path / "given", model__objective="{name: swav}")
    model = start(swav).bare_model
    weights = zip(model.projector.parameters(), given.projector.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)
    assert model.objective.prototypes.isfinite().all()
    with pytest.raises(ValueError, match="is of another size than section 'model'"):
        start(small_config(tmp_path / "large", initial_model=tmp_path / "given", model__hidden_size=32))
    with pytest.raises(ValueError, match="holds no weights as safetensors"):
        start(small_config(tmp_path / "wrong", initial_model=tmp_path / "run"))
