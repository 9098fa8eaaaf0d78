"""CRD and the regression of features: against slow loops, what gradients reach, and what they are without a teacher."""

import pytest
import torch
from objective_fixtures import draw_batch, gradients, make

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.crd import Crd
from modeling_hybrid.objectives.feature_regression import FeatureRegression


both = pytest.mark.parametrize("name", ["crd", "feature_regression"])


def slow_crd(objective: Crd, batch: ObjectiveBatch) -> torch.Tensor:
    def row(layer, features):
        projected = layer.weight.double() @ features
        return projected / projected.norm()

    teachers = [row(objective.of_teacher, features) for features in batch.teacher]
    losses = []
    for view in batch.pooled:
        students = [row(objective.of_student, features) for features in view]
        for i, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
            for one, others in ((student, teachers), (teacher, students)):
                logits = torch.stack([one @ other for other in others]) / objective.teacher_temperature
                losses.append(logits.logsumexp(0) - logits[i])
    return torch.stack(losses).mean()


def slow_regression(objective: FeatureRegression, batch: ObjectiveBatch) -> torch.Tensor:
    weight, bias = objective.of_student.weight.double(), objective.of_student.bias.double()
    errors = [
        weight[column] @ features + bias[column] - teacher[column]
        for view in batch.pooled
        for features, teacher in zip(view, batch.teacher, strict=True)
        for column in range(len(bias))
    ]
    return torch.stack(errors).square().mean()


@pytest.mark.parametrize(("name", "slow"), [("crd", slow_crd), ("feature_regression", slow_regression)])
def test_info_nce_and_the_slow_loop(name, slow):
    batch, objective = draw_batch(), make(name, weight=0.5).double()
    loss, telemetry = objective(batch)
    expected = slow(objective, batch)
    torch.testing.assert_close(telemetry["distance_from_teacher"], expected.detach())
    torch.testing.assert_close(loss, make("info_nce")(batch)[0] + 0.5 * expected)


@both
def test_no_gradient_reaches_the_teacher_and_some_all_layers(name):
    batch, objective = draw_batch(), make(name).double()
    batch.teacher.requires_grad_()
    objective(batch)[0].backward()
    found = gradients(batch, objective)
    assert set(found) == {"projections", "pooled"} | {key for key, _ in objective.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert name != "crd" or "of_teacher.weight" in found


@both
def test_without_a_teacher_or_a_weight_it_is_info_nce(name):
    batch = draw_batch()
    expected = make("info_nce")(batch)[0]
    torch.testing.assert_close(make(name, weight=0.0).double()(batch)[0], expected)
    batch.teacher = None
    torch.testing.assert_close(make(name).double().eval()(batch)[0], expected)
    with pytest.raises(ValueError, match="needs teacher"):
        make(name)(batch)


def test_a_student_that_is_the_teacher_is_near():
    """CRD falls to the entropy of equal rows among others; the regression can reach 0."""
    batch = draw_batch(kinds=(0,) * 2)
    batch.pooled = batch.teacher.expand(2, -1, -1)
    crd, regression = (make(name).double() for name in ("crd", "feature_regression"))
    before = [objective(batch)[1]["distance_from_teacher"] for objective in (crd, regression)]
    with torch.no_grad():
        crd.of_teacher.weight.copy_(crd.of_student.weight)
        regression.of_student.weight.copy_(torch.eye(5))
        regression.of_student.bias.zero_()
    assert crd(batch)[1]["distance_from_teacher"] < before[0] / 2
    assert regression(batch)[1]["distance_from_teacher"] == 0 < before[1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("crd", {"teacher_temperature": 0.0}),
        ("crd", {"teacher_size": 0}),
        ("crd", {"weight": -1.0}),
        ("feature_regression", {"pooled_size": 0}),
        ("feature_regression", {"temperature": 0.0}),
    ],
)
def test_bad_arguments_are_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        make(name, **arguments)


@both
def test_a_teacher_of_another_width_is_named(name):
    with pytest.raises(ValueError, match="5 wide, but teacher_size=7"):
        make(name, teacher_size=7).double()(draw_batch())
