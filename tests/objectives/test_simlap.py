"""SimLAP: its slow loop, InfoNCE where gates are open and labels differ, symmetric gates, and bad input by name."""

import math

import pytest
import torch
from objective_fixtures import make, unit_rows

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.simlap import pair_losses
from modeling_hybrid.objectives.weighted_info_nce import weighted_info_nce


def test_the_formula():
    objective, labels = make("simlap").double(), torch.tensor([0, 1, 1, 2, 0])
    rows, scale, losses = unit_rows(3, 5, 8), 10.0, []
    for a in range(3):
        for b in (view for view in range(3) if view != a):
            for i in range(5):
                for mate in range(5):
                    c, d = int(labels[i]), int(labels[mate])
                    gate = objective.gates(labels[i], labels[mate]).detach()
                    s = [scale * float((rows[a, i] * gate) @ (rows[b, j] * gate)) for j in range(5)]
                    others = sum(math.exp(s[k]) for k in range(5) if labels[k] not in (c, d))
                    alike = [j for j in range(5) if labels[j] == d]
                    losses.append(sum(math.log(math.exp(s[j]) + others) - s[j] for j in alike) / len(alike))
    loss, _ = objective(ObjectiveBatch(projections=rows, labels=labels))
    assert loss.item() == pytest.approx(sum(losses) / len(losses))


def test_open_gates_and_labels_that_differ_are_info_nce():
    rows, labels = unit_rows(2, 6, 8), torch.arange(6)
    open_gates = torch.ones(6, 6, 8, dtype=torch.float64)
    found = [pair_losses(rows[a], labels, rows[1 - a], labels, labels, open_gates, 5.0).diagonal() for a in (0, 1)]
    expected = weighted_info_nce(rows, 0.2, torch.zeros(6, 6, dtype=torch.float64))
    torch.testing.assert_close(torch.stack(found).mean(), expected)


def test_gates_are_those_of_the_pair_and_change_the_loss():
    objective = make("simlap")
    one, other = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])
    gates = objective.gates(one, other)
    assert torch.equal(gates, objective.gates(other, one)) and gates.shape == (3, 8)
    assert ((gates > 0) & (gates < 1)).all() and not torch.allclose(gates[0], gates[2])


def test_a_batch_without_negatives_costs_nothing():
    for labels in (torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 1, 1])):
        batch = ObjectiveBatch(projections=unit_rows(2, 4, 8, dtype=torch.float32), labels=labels)
        loss, _ = make("simlap")(batch)
        # With two classes, each has the other as negatives where it meets itself.
        assert (loss.item() == 0) == (len(labels.unique()) == 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_classes": 0}, "max_classes=0 must be positive"),
        ({"temperature": 2.0}, r"temperature=2.0 must be in \[0.01, 1\]"),
        ({"embedding_size": 0}, "embedding_size=0 must be positive"),
    ],
)
def test_arguments_out_of_range(arguments, said):
    with pytest.raises(ValueError, match=said):
        make("simlap", **arguments)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(label):
    batch = ObjectiveBatch(projections=unit_rows(2, 3, 8), labels=torch.tensor([0, 1, label]))
    with pytest.raises(ValueError, match=r"labels hold .* but objective 'simlap' was given max_classes=3, 0 to 2"):
        make("simlap")(batch)
