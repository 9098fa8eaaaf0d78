"""SupReMix: SupCon on classes without mixtures, its slow loop with them, the order that they keep, its contest."""

import json
import math

import numpy as np
import pytest
import torch
from objective_fixtures import value_and_gradient
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_hybrid import HybridConfig, HybridForImageClassification
from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.sup_con import SupCon
from training.compare_regression import main
from training.comparison.regression import LARGEST_TURN, turned
from training.comparison.systems import table
from training.finetuning import sup_re_mix
from training.finetuning.sup_re_mix import SupReMix, mixtures


def build_model(**overrides):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_encoder_layers": 1, "hidden_dropout": 0.0}
    kind = {"num_labels": 1, "problem_type": "regression"}
    return HybridForImageClassification(HybridConfig.from_size("tiny", **small | kind | overrides))


@pytest.fixture
def build(tmp_path):
    model = build_model()
    return lambda **arguments: SupReMix(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True), **arguments)


TARGETS = torch.tensor([0.0, 0.5, -1.0, 0.5, 2.0])


def test_without_contrast_and_in_evaluation_it_is_the_squared_error(build):
    trainer = build(eta=0.0)
    plain = Trainer(model=trainer.model, args=trainer.args)
    inputs = {"pixel_values": torch.rand(5, 1, 8, 8) * 2 - 1, "labels": TARGETS}
    losses = [each.compute_loss(trainer.model.train(), dict(inputs)) for each in (trainer, plain)]
    torch.testing.assert_close(*losses)
    whole, model = build(eta=3.0), trainer.model
    assert whole.compute_loss(model.train(), dict(inputs)) > losses[0]
    assert torch.equal(whole.compute_loss(model.eval(), dict(inputs)), plain.compute_loss(model, dict(inputs)))


def test_on_classes_without_mixtures_and_weights_it_is_sup_con(build):
    trainer = build(num_mixed=0, weighted=False, temperature=0.2)
    labels, rows = torch.tensor([0, 1, 2, 1]), torch.randn(8, 5)

    def sup_con(rows):
        views = nn.functional.normalize(rows, dim=1).unflatten(0, (2, 4))
        return SupCon(0.2)(ObjectiveBatch(projections=views, labels=labels))[0]

    torch.testing.assert_close(
        value_and_gradient(lambda r: trainer.contrast(r, labels.repeat(2).float()), rows),
        value_and_gradient(sup_con, rows),
    )


def test_the_formula_with_mixtures(build, monkeypatch):
    rows = nn.functional.normalize(torch.randn(5, 4), dim=1)
    given = mixtures(rows, TARGETS, 3, window=1.0)
    monkeypatch.setattr(sup_re_mix, "mixtures", lambda *_: given)
    losses = []
    for i in range(5):
        columns = [(rows[j], float(TARGETS[j])) for j in range(5) if j != i]
        for mixed, targets, counts in given:
            columns += [(mixed[i, m], float(targets[i, m])) for m in range(3) if counts[i]]
        own = float(TARGETS[i])
        of_columns = [(float(rows[i] @ row) / 0.3, abs(target - own)) for row, target in columns]
        normaliser = math.log(sum((1 + gap) * math.exp(s) for s, gap in of_columns))
        if positives := [s for s, gap in of_columns if gap == 0]:
            losses.append(normaliser - sum(positives) / len(positives))
    assert 0 < len(losses) < 5  # the ends have none
    assert build(num_mixed=3).contrast(rows, TARGETS).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_mixtures_keep_the_order_of_targets():
    """On rows that are on a circle by their target, a mixture lies where its own target says."""
    targets = torch.linspace(-1, 1, 21)
    rows = torch.stack([(targets / 10).cos(), (targets / 10).sin()], dim=1)  # so short an arc is nearly straight
    (negatives, of_negatives, all_have), (positives, of_positives, have) = mixtures(rows, targets, 8, window=0.5)
    for mixed, theirs in ((negatives, of_negatives), (positives, of_positives)):
        found = 10 * torch.atan2(mixed[..., 1], mixed[..., 0])
        torch.testing.assert_close(found[have], theirs[have], atol=1e-3, rtol=0)
    assert torch.equal(of_positives, targets[:, None].expand(21, 8)) and all_have.all()
    # The smallest and the largest have nobody on one side.
    assert have.tolist() == [False, *[True] * 19, False]
    assert (of_negatives != targets[:, None]).all()


def test_no_gradient_goes_through_mixtures_and_equal_targets_are_finite(build):
    for targets in (TARGETS, torch.ones(5), torch.arange(5.0)):
        features = torch.randn(5, 4, requires_grad=True)
        build().contrast(features, targets).backward()
        assert features.grad.isfinite().all()
    # The first two have only each other, and the third no positive at all.
    rows = torch.randn(3, 4, requires_grad=True)
    build(num_mixed=0).contrast(rows, torch.tensor([0.0, 1.0, 2.0])).backward()
    assert rows.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"eta": -1.0}, "eta=-1.0 must not be negative"),
        ({"num_mixed": -1}, "num_mixed=-1 must not be negative"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"window": 0.0}, "window=0.0 must be positive"),
    ],
)
def test_arguments_out_of_range(build, arguments, said):
    with pytest.raises(ValueError, match=said):
        build(**arguments)


def test_a_model_of_classes_is_refused(tmp_path):
    model = build_model(num_labels=3, problem_type=None)
    with pytest.raises(ValueError, match="one value of each image, but the model has problem_type=None"):
        SupReMix(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True))


def test_images_are_turned_by_their_angle():
    levels = torch.zeros(200, 1, 9, 9, dtype=torch.uint8)
    levels[:, :, 4, 8] = 10  # right of the centre
    images, angles = turned(levels, seed=1)
    assert np.abs(angles).max() <= LARGEST_TURN and np.abs(angles).max() > 0.9 * LARGEST_TURN
    weights = images[:, 0].float()
    at = torch.arange(9.0) - 4
    height, width = (weights.sum(2) @ at).numpy(), (weights.sum(1) @ at).numpy()
    # Upwards is up to the convention of rows, and turned by a positive angle.
    assert np.abs(np.degrees(np.arctan2(-height, width)) - angles).max() < 8
    assert images.dtype == torch.uint8 and np.array_equal(turned(levels, seed=1)[1], angles)


def test_methods_beside_each_other(run_folder, tmp_path, capsys):
    output = tmp_path / "regression.json"
    command = ["--checkpoint", str(run_folder / "model"), "--num-images", "40", "--num-steps", "2", "--seeds", "1"]
    assert main([*command, "--output", str(output), "--methods", "ce", "{name: sup_re_mix, num_mixed: 2}"]) == 0
    found = json.loads(output.read_text())
    ours, control = found["arms"]["{name: sup_re_mix, num_mixed: 2}"], found["arms"]["ce"]
    means = [np.mean([run["mean_absolute_error"] for run in arm["runs"]]) for arm in (ours, control)]
    assert ours["minus_control"]["mean_absolute_error"]["mean"] == pytest.approx(means[0] - means[1], abs=1e-5)
    assert "squared error, angles from 40 images: digits, test, seeds 0" in table(found)
    capsys.readouterr()
    for wrong, said in (
        (("--num-images", "1"), "--num-images 1 must be at least 2"),
        (("--num-images", "5000"), "--num-images 5000 are more than"),
    ):
        assert main([*command, *wrong]) == 1
        assert said in capsys.readouterr().err
