"""COCONUT's contrast against a slow loop, what it is without its parts, and class-incremental learning around it."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from training_fixtures import reset_accelerate
from transformers import Trainer, TrainingArguments

from modeling_hybrid import HybridConfig, HybridForImageClassification
from training import continual as command
from training.comparison.continual import METHODS, Continual, Rehearsed, summary
from training.comparison.finetuning import drawn
from training.config import load_config_beside
from training.finetuning.coconut import Coconut


LABELS = torch.tensor([0, 1, 1, 2, 0, 2])
IS_REHEARSAL = torch.tensor([True, True, True, False, True, False])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HybridForImageClassification(
        HybridConfig.from_size("tiny", hidden_size=16, num_encoder_layers=1, num_labels=3)
    )


@pytest.fixture
def build(model, tmp_path):
    def start(**arguments):
        return Coconut(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True), **arguments)

    return start


@pytest.fixture
def inputs():
    return {"pixel_values": torch.rand(6, 1, 8, 8) * 2 - 1, "labels": LABELS, "is_rehearsal": IS_REHEARSAL}


def test_the_contrast_equals_the_slow_loop(build):
    features, taught = torch.randn(6, 4), torch.randn(4, 4)
    z, teacher = nn.functional.normalize(features, dim=1), nn.functional.normalize(taught, dim=1)
    rehearsed = IS_REHEARSAL.nonzero()[:, 0].tolist()
    losses = []
    for i in rehearsed:
        negatives = sum(math.exp(z[i] @ z[a] / 0.3) for a in range(6) if LABELS[a] != LABELS[i])
        terms = []
        for place, p in enumerate(rehearsed):
            if LABELS[p] == LABELS[i]:
                e = math.exp(z[i] @ teacher[place] / 0.3)
                terms.append(-math.log(e / (e + negatives)))
        losses.append(sum(terms) / len(terms))
    found = build(temperature=0.3).contrast(features, taught, LABELS, IS_REHEARSAL)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_one_class_alone_costs_nothing_and_stays_finite(build):
    features = torch.randn(3, 4, requires_grad=True)
    loss = build().contrast(features, torch.randn(3, 4), torch.zeros(3, dtype=torch.long), torch.ones(3).bool())
    loss.backward()
    assert loss == 0 and features.grad.isfinite().all()


def test_without_buffer_or_teacher_and_in_evaluation_it_is_cross_entropy(model, build, inputs):
    plain = Trainer(model=model, args=build().args)
    whole = build(teacher=HybridForImageClassification(model.config), weight=5.0)

    def losses(trainer, training, **changed):
        given = inputs | changed
        without = {key: part for key, part in given.items() if key != "is_rehearsal"}
        model.train(training)
        return trainer.compute_loss(model, given), plain.compute_loss(model, without)

    empty = torch.zeros(6, dtype=torch.bool)
    for trainer, training, changed in ((build(), True, {}), (whole, True, {"is_rehearsal": empty}), (whole, False, {})):
        assert torch.equal(*losses(trainer, training, **changed))
    found, expected = losses(whole, True)
    assert found > expected


def test_the_teacher_learns_nothing(build, model, inputs):
    teacher = HybridForImageClassification(model.config)
    build(teacher=teacher).compute_loss(model.train(), inputs).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters()) and not teacher.training
    assert any(parameter.grad.abs().max() > 0 for parameter in model.encoder.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("arguments", [{"weight": -1}, {"temperature": 0}])
def test_bad_arguments_are_named(build, arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        build(**arguments)


def test_images_to_rehearse_are_drawn_from_the_training_images_equally_and_the_same_again():
    labels = np.repeat([0, 1, 2], [20, 20, 4])
    kept = drawn(labels, 5, seed=3)
    assert np.bincount(labels[kept]).tolist() == [5, 5, 4] and len(set(kept)) == 14
    assert np.array_equal(kept, drawn(labels, 5, seed=3)) and not np.array_equal(kept, drawn(labels, 5, seed=4))
    # Twice as many hold these.
    assert set(kept[:5]) <= set(drawn(labels, 10, seed=3)[:10])
    levels = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    items = Rehearsed(levels, np.arange(6), 17, num_new=4).__getitems__([5, 0, 4, 3])
    assert [item["is_rehearsal"] for item in items] == [True, False, True, False]


def test_the_summary_by_hand():
    nan = np.nan
    found = summary(np.array([[0.9, nan, nan], [0.7, 0.8, nan], [0.6, 0.9, 0.3]]))
    assert found == {
        "last_accuracy": pytest.approx(0.6),
        "average_accuracy": pytest.approx((0.9 + 0.75 + 0.6) / 3),
        "forgetting": pytest.approx((0.3 - 0.1) / 2),
    }


def test_classes_come_in_tasks(run_folder, tmp_path, capsys):
    """Every method runs; what is rehearsed is not lost, and without it all but the last task is."""
    reset_accelerate()
    checkpoint = run_folder / "model"
    continual = Continual(checkpoint, load_config_beside(checkpoint, None), 2, 5, 6, 1e-2)
    found = continual.accuracies(METHODS["coconut"], seed=0)
    assert np.isnan(found[0, 1]) and np.isfinite(found[[0, 1, 1], [0, 0, 1]]).all() and found[0, 0] > 0.3
    output = tmp_path / "continual.json"
    arguments = [
        "--num-tasks",
        "2",
        "--num-steps",
        "2",
        "--seeds",
        "1",
        "--num-rehearsed",
        "3",
        "--output",
        str(output),
    ]
    assert command.main(["--checkpoint", str(checkpoint), *arguments, "--methods", "replay", "coconut", "probe"]) == 0
    stored = json.loads(output.read_text())
    assert set(stored["arms"]) == {"replay", "coconut", "probe", "coconut beside replay", "coconut beside probe"}
    judged = stored["arms"]["coconut beside replay"]
    assert judged["control"] == "replay" and set(judged["minus_control"]) == {
        *("last_accuracy", "average_accuracy", "forgetting")
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-tasks", "6"], "--num-tasks 6 must lie in 2..5"),
        (["--methods", "nap"], "--methods nap: there are replay, coconut"),
        (["--num-steps", "0"], "--num-steps 0 must be positive"),
    ],
)
def test_mistakes_are_told(run_folder, capsys, arguments, said):
    assert command.main(["--checkpoint", str(run_folder / "model"), *arguments]) == 1
    assert said in capsys.readouterr().err
