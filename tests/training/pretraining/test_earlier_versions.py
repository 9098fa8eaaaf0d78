"""What an earlier version has saved still loads, scores the same, and a run that it began goes on to the same end."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_fixtures import load_splits_once, log_lines, start
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForPreTraining

from modeling_hybrid import HybridForOutOfDistributionDetection, HybridImageProcessor
from modeling_hybrid.levels import levels_to_pixels
from training.config import load_config
from training.pretraining.loop import train


# Named after the commit that wrote them: a run of 12 steps that was killed at step 8, a detector, and what that version
# made of them.
SAVED = sorted((Path(__file__).parents[2] / "saved").iterdir())


@pytest.fixture(params=SAVED, ids=lambda folder: folder.name)
def saved(request) -> Path:
    return request.param


@pytest.fixture
def expected(saved) -> dict:
    return json.loads((saved / "expected.json").read_text())


def eight_digits(folder: Path) -> torch.Tensor:
    config = load_config(folder / "config.yaml")
    levels = load_splits_once(config.data, config.model_config()).test.all_levels(8)
    return levels_to_pixels(levels, 17)


def assert_near(found: torch.Tensor, expected: list) -> None:
    """Equal but for what another processor rounds differently."""
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_checkpoints_score_as_they_did(saved, expected):
    model, x = saved / "run" / "model", eight_digits(saved / "run")
    assert_near(AutoModelForCausalLM.from_pretrained(model).log_likelihood(x), expected["log_likelihood"])
    assert_near(AutoModelForPreTraining.from_pretrained(model).log_likelihood(x), expected["log_likelihood"])
    assert_near(AutoModel.from_pretrained(model)(x).pooler_output[:, :4], expected["features"])
    assert HybridImageProcessor.from_pretrained(model).num_levels == 17
    assert_near(AutoModel.from_pretrained(saved / "detector")(x).scores, expected["scores"])
    assert type(AutoModel.from_pretrained(saved / "detector")) is HybridForOutOfDistributionDetection


def test_a_checkpoint_that_is_saved_again_names_the_files_of_today(saved, tmp_path):
    AutoModelForPreTraining.from_pretrained(saved / "run" / "model").save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForPreTraining"] == "pretraining_hybrid.HybridForPreTraining"


def test_a_run_goes_on_to_the_same_end(saved, expected, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved / "run", folder)
    run = start(load_config(folder / "config.yaml", [f"output_dir={folder}"]))
    assert run.progress.step == 8
    train(run)
    last = {name: value for row in log_lines(folder) if row["step"] == 12 for name, value in row.items()}
    for name in ("loss", "bits_per_dim", "gradient_norm", "validation/loss", "validation/bits_per_dim"):
        assert last[name] == pytest.approx((expected["last_loss"] | expected["final"])[name], rel=1e-3), name
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder / "last").log_likelihood(eight_digits(folder))
    torch.testing.assert_close(found, torch.tensor(expected["log_likelihood_after_resuming"]), rtol=1e-3, atol=0.0)
