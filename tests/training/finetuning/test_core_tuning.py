"""Core-tuning: what it is without its parts, what it mixes, and how it is started."""

import json

import pytest
import torch
from objective_fixtures import value_and_gradient
from torch import nn
from training_fixtures import finetune
from transformers import Trainer, TrainingArguments

from modeling_hybrid import HybridConfig, HybridForImageClassification
from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.sup_con import SupCon
from training.finetuning.core_tuning import CoreTuning, hardest
from training.finetuning.methods import METHODS, trainer_of


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HybridForImageClassification(
        HybridConfig.from_size("tiny", hidden_size=16, num_encoder_layers=1, num_labels=3, hidden_dropout=0.0)
    )


@pytest.fixture
def build(model, tmp_path):
    def start(**arguments):
        return CoreTuning(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True), **arguments)

    return start


LABELS = torch.tensor([0, 1, 1, 2, 0, 2])


def test_without_contrast_and_mixtures_it_is_cross_entropy(model, build, tmp_path):
    inputs = {"pixel_values": torch.rand(6, 1, 8, 8) * 2 - 1, "labels": LABELS}
    trainer = build(eta=0.0, mixtures=False)
    plain = Trainer(model=model, args=trainer.args)
    losses = [each.compute_loss(model.train(), dict(inputs)) for each in (trainer, plain)]
    torch.testing.assert_close(*losses)
    # In evaluation it is, whatever the arguments.
    whole = build(eta=3.0)
    assert torch.equal(whole.compute_loss(model.eval(), dict(inputs)), plain.compute_loss(model, dict(inputs)))


def test_without_focus_the_contrast_is_that_of_sup_con(build):
    trainer = build(eta=0.5, focal=False, mixtures=False, temperature=0.2)
    targets = nn.functional.one_hot(LABELS, 3).float()
    rows = torch.randn(6, 5)

    def sup_con(rows):
        # One view: two rows of each class.
        views = nn.functional.normalize(rows, dim=1)[None]
        objective = SupCon(0.2)
        objective.min_views = 1
        return objective(ObjectiveBatch(projections=views, labels=LABELS))[0]

    torch.testing.assert_close(
        value_and_gradient(lambda r: trainer.contrast(r, targets), rows), value_and_gradient(sup_con, rows)
    )
    features, classifier = torch.randn(6, trainer.model.config.pooled_size), trainer.model.classifier
    expected = nn.functional.cross_entropy(classifier(features), LABELS) + 0.5 * sup_con(trainer.head(features))
    torch.testing.assert_close(trainer.loss(classifier, features, LABELS), expected)


def test_the_focal_contrast_equals_the_slow_loop(build):
    trainer = build(temperature=0.3)
    rows, targets = torch.randn(5, 4), torch.rand(5, 3)
    targets = targets / targets.sum(dim=1, keepdim=True)
    unit = nn.functional.normalize(rows, dim=1)
    losses = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        shares = torch.stack([unit[i] @ unit[j] / 0.3 for j in others]).softmax(0)
        weights = torch.stack([targets[i] @ targets[j] for j in others])
        losses.append(-(weights / weights.sum() * (1 - shares) * shares.log()).sum())
    torch.testing.assert_close(trainer.contrast(rows, targets), torch.stack(losses).mean())


def test_the_hardest_are_the_farthest_of_a_class_and_the_nearest_of_others():
    angles = torch.tensor([0.0, 10.0, 80.0, 20.0, 100.0, 200.0]).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    targets = nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 1, 2]), 3).float()
    far, near = hardest(rows, targets)
    assert far.tolist() == [2, 2, 0, 4, 3, 5]  # the last is alone in its class
    assert near.tolist() == [3, 3, 4, 1, 2, 4]
    one_class = torch.ones(6, 1)
    assert hardest(rows, one_class)[1].tolist() == list(range(6))


def test_mixtures_mix_labels_as_they_mix_features(build):
    """With features that are the labels themselves, both stay the same thing."""
    targets = nn.functional.one_hot(LABELS, 3).float()
    rows, mixed = build().with_mixtures(targets.clone(), targets)
    assert rows.shape == (18, 3) and torch.equal(rows, mixed) and torch.equal(mixed[:6], targets)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(18))
    # The first share is .8 at least; of hard mixtures it is that of the own class.
    assert (mixed[6:].max(dim=1).values >= 0.8).all()
    assert torch.equal(mixed[12:].argmax(dim=1), LABELS)


def test_a_class_of_one_image_is_finite_and_the_encoder_learns_from_every_part(build):
    trainer = build(eta=1.0)
    features = torch.randn(4, trainer.model.config.pooled_size, requires_grad=True)
    for labels in (torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1]), torch.tensor([2, 2, 2, 2])):
        loss = trainer.loss(trainer.model.classifier, features, labels)
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss.isfinite() and gradient.isfinite().all() and (gradient != 0).any(dim=1).all()
    alone = trainer.contrast(torch.randn(3, 4), torch.eye(3))
    assert alone == 0


def test_it_trains_its_head_and_saves_an_ordinary_classifier(run_folder, tmp_path):
    arguments = [
        "--max_steps",
        3,
        "--eval_strategy",
        "no",
        "--save_strategy",
        "no",
        "--load_best_model_at_end",
        "False",
    ]
    method = ["--method", "{name: core_tuning, eta: 0.5}"]
    assert finetune(run_folder, *arguments, *method, "--output_dir", tmp_path / "core") == 0
    assert finetune(run_folder, *arguments, "--output_dir", tmp_path / "plain") == 0
    core, plain = (HybridForImageClassification.from_pretrained(tmp_path / name) for name in ("core", "plain"))
    assert core.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(core.classifier.weight, plain.classifier.weight)
    assert 0 < json.loads((tmp_path / "core" / "finetuning.json").read_text())["test_accuracy"] <= 1


def test_the_optimizer_moves_the_head(build):
    trainer = build()
    trainer.create_optimizer()
    moved = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in trainer.head.parameters()} <= moved
    groups = len(trainer.optimizer.param_groups)
    trainer.create_optimizer()
    assert len(trainer.optimizer.param_groups) == groups


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("core_tunin", "has no key 'core_tunin'; the nearest known key is 'core_tuning'"),
        ("{name: core_tuning, etta: 1}", "Method 'core_tuning' has no key 'etta'; the nearest known key is 'eta'"),
        ("{name: ce, eta: 1}", "Method 'ce' has no arguments, but eta=1 was given"),
        ("{name: ce", "is no name, nor of the form"),
        ("3", "has no key '3'"),
    ],
)
def test_methods_that_are_not_there_are_named(method, said):
    with pytest.raises(ValueError, match=said):
        trainer_of(method)


def test_every_method_has_its_file_and_ce_is_the_trainer_as_it_is():
    assert trainer_of("ce").func is Trainer and trainer_of("ce").keywords == {}
    assert trainer_of("{name: core_tuning, eta: 2}").keywords == {"eta": 2}
    for name in METHODS:
        assert issubclass(trainer_of(name).func, Trainer)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"eta": -1}, "eta=-1 must"), ({"alpha": 0}, "alpha=0 must"), ({"temperature": 0}, "temperature=0 must")],
)
def test_bad_arguments_are_named(build, arguments, said):
    with pytest.raises(ValueError, match=said):
        build(**arguments)


def test_it_does_not_go_on_from_a_checkpoint(build):
    with pytest.raises(ValueError, match="cannot go on, as its head is no part"):
        build().train(resume_from_checkpoint="somewhere")
