"""The results of health on features whose answer is known, and in a training run."""

import json

import numpy as np
import pytest
import torch
from training_fixtures import small_config, train_whole

from modeling_hybrid import HybridConfig, HybridForPreTraining
from training.evaluation.spread import collapse, spread
from training.optimization.gradients import gradient_cosine
from training.pretraining import validation


def test_spread_of_features_that_point_everywhere_and_nowhere():
    rows = np.random.default_rng(0).normal(size=(2000, 32))
    healthy = spread(rows)
    assert healthy["feature_std"] == pytest.approx(1, abs=0.02) and healthy["effective_rank"] > 30
    assert collapse(healthy) is None
    to_a_point = spread(1 + 1e-4 * rows)
    assert to_a_point["feature_std"] < 1e-3
    to_a_line = spread(rows[:, :1] * np.ones(32))
    assert to_a_line["effective_rank"] == pytest.approx(1, abs=1e-3)
    for collapsed in (to_a_point, to_a_line):
        assert f"effective rank {collapsed['effective_rank']:.2f}" in collapse(collapsed)
    with_prefix = {f"validation/{name}": value for name, value in to_a_line.items()}
    assert collapse(with_prefix, "validation/") == collapse(to_a_line)


def tiny(**overrides) -> HybridForPreTraining:
    torch.manual_seed(0)
    return HybridForPreTraining(HybridConfig.from_size("tiny", num_encoder_layers=1, num_decoder_layers=1, **overrides))


@pytest.mark.parametrize("pooling", ["attention", "contextual", "regional"])
def test_cosine_of_the_gradients_is_that_of_two_backward_passes(pooling):
    """Over what both losses reach: not the weights of a pooling, which the likelihood does not use."""
    model = tiny(pooling=pooling).eval()
    inputs = {"pixel_values": torch.randint(0, 17, (2, 4, 1, 8, 8)) / 8 - 1, "view_kinds": torch.tensor([0, 1])}
    gradients = []
    for name in ("contrastive_loss", "generative_loss"):
        model.zero_grad()
        model(**inputs)[name].backward()
        gradients.append([p.grad for name, p in model.encoder.named_parameters() if not name.startswith("pooler")])
    products = [sum((x * y).sum() for x, y in zip(a, b, strict=True)) for a in gradients for b in gradients]
    model.zero_grad()
    with torch.no_grad():
        cosine = gradient_cosine(model, inputs)
    torch.testing.assert_close(cosine, products[1] / (products[0] * products[3]).sqrt())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("off", [{"contrastive_weight": 0}, {"generative_weight": 0}])
def test_one_loss_has_no_cosine(off):
    assert gradient_cosine(tiny(**off), {"pixel_values": torch.zeros(2, 4, 1, 8, 8)}) is None


def test_a_run_writes_its_health_and_raises_the_alarm(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(validation, "spread", lambda features: spread(np.ones_like(features)))
    run = train_whole(small_config(tmp_path / "run"))
    rows = [json.loads(line) for line in (run.output_dir / "log.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "validation/loss" in row]
    assert len(validated) == 2
    for row in validated:
        assert -1 <= row["validation/gradient_cosine"] <= 1
        assert row["validation/effective_rank"] == pytest.approx(1, abs=1e-3) and row["validation/feature_std"] < 1e-6
    assert {"alignment", "uniformity", "effective_rank"} <= set(rows[0])
    assert capsys.readouterr().out.count("ALARM: the features collapse") == 2
