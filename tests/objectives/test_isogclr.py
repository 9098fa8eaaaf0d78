"""iSogCLR against a slow loop with a state of its own, and what its state and its gradient keep."""

import math

import pytest
import torch
from objective_fixtures import unit_rows, value_and_gradient

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.decoupled import Decoupled
from modeling_hybrid.objectives.isogclr import ISogCLR


NUM_SAMPLES = 12


def run(objective, projections, ids):
    return objective(ObjectiveBatch(projections=projections, sample_ids=torch.as_tensor(ids)))[0]


def close(found, expected):
    """Up to the rounding of arguments such as gamma to single precision."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class SlowISogCLR:
    """One anchor and one negative at a time; u itself, not its logarithm; 0 where an image has not been seen."""

    def __init__(self, temperature, gamma, rho, beta, learning_rate, bounds):
        self.u, self.m, self.t = {}, {}, {}
        self.start, self.gamma, self.rho, self.beta = temperature, gamma, rho, beta
        self.learning_rate, self.bounds = learning_rate, bounds

    def step(self, projections, ids):
        """The value, and the surrogate that has the gradient."""
        num_views, batch_size, _ = projections.shape
        pairs = [(a, b) for a in range(num_views) for b in range(num_views) if a != b]
        value, surrogate, new = 0.0, 0.0, []
        for i, key in enumerate(ids):
            t, u_before = self.t.get(key, self.start), self.u.get(key, 0)
            u_sum, gradient_sum = 0.0, 0.0
            for a, b in pairs:
                negatives = [projections[a, i] @ projections[v, j] for v in (a, b) for j in range(batch_size) if j != i]
                count = len(negatives)
                g = sum(math.exp(s.item() / t) for s in negatives) / count
                u = (1 - self.gamma) * u_before + self.gamma * g if u_before else g
                weights = [math.exp(s.item() / t) / u for s in negatives]
                weighted = sum(w * s for w, s in zip(weights, negatives, strict=True)) / count
                attraction = projections[a, i] @ projections[b, i]
                surrogate = surrogate + weighted - attraction
                value += t * math.log(g) - attraction.item() + self.rho * t
                u_sum += u
                gradient_sum += math.log(u) + self.rho - weighted.item() / t
            m = (1 - self.beta) * self.m.get(key, 0.0) + self.beta * gradient_sum / len(pairs)
            moved = min(max(t - self.learning_rate * m, self.bounds[0]), self.bounds[1])
            new.append((key, u_sum / len(pairs), m, moved))
        for key, u, m, t in new:
            self.u[key], self.m[key], self.t[key] = u, m, t
        return value / (batch_size * len(pairs)), surrogate / (batch_size * len(pairs))


@pytest.mark.parametrize("num_views", [2, 3])
def test_equals_the_slow_loop_over_steps(num_views):
    arguments = {"temperature": 0.2, "gamma": 0.6, "rho": 0.4, "beta": 0.7, "learning_rate": 0.1}
    objective = ISogCLR(NUM_SAMPLES, **arguments, min_temperature=0.13, max_temperature=0.24).double()
    objective.start_weights()
    slow = SlowISogCLR(**arguments, bounds=(0.13, 0.24))
    for ids in ([3, 1, 7, 2], [1, 11, 3, 5], [2, 3, 1, 0]):
        projections = unit_rows(num_views, 4, 4)
        value, gradient = value_and_gradient(lambda z, ids=ids: run(objective, z, ids), projections)
        leaf = projections.requires_grad_()
        expected, surrogate = slow.step(leaf, ids)
        surrogate.backward()
        close(value.item(), expected)
        close(gradient, leaf.grad)
    seen = sorted(slow.u)
    states = {"log_normalisers": slow.u, "temperature_momenta": slow.m, "temperatures": slow.t}
    for name, state in states.items():
        expected = torch.tensor([float(state[key]) for key in seen], dtype=torch.float64)
        expected = expected.log() if name == "log_normalisers" else expected
        close(objective.get_buffer(name)[seen], expected)
    # The clipping has been at work, and not everywhere.
    assert 0 < sum(t in slow.bounds for t in slow.t.values()) < len(seen)


def test_without_memory_it_has_the_gradient_of_dcl():
    """Times the temperature."""
    projections = unit_rows(2, 6, 5)
    objective = ISogCLR(NUM_SAMPLES, individual_temperatures=False, temperature=0.3, gamma=1.0)
    for _ in range(2):
        _, found = value_and_gradient(lambda z: run(objective, z, range(6)), projections)
    _, expected = value_and_gradient(lambda z: Decoupled(0.3)(ObjectiveBatch(projections=z))[0], projections)
    torch.testing.assert_close(found, 0.3 * expected)


def test_memory_scales_the_repulsion_and_not_the_value():
    """The weights are constants, divided by u: half of the weight to the first batch doubles, here, what repels."""
    projections = unit_rows(2, 6, 5)
    objective = ISogCLR(NUM_SAMPLES, individual_temperatures=False, gamma=0.5).double()
    first, fresh = value_and_gradient(lambda z: run(objective, z, range(6)), projections)
    objective.log_normalisers.fill_(-1e9)
    second, repeated = value_and_gradient(lambda z: run(objective, z, range(6)), projections)
    torch.testing.assert_close(first, second)
    attraction = -projections.flip(0) / 6
    torch.testing.assert_close(repeated - attraction, 2 * (fresh - attraction))


def test_the_gradient_of_the_temperature_is_rho_less_a_divergence():
    projections = unit_rows(2, 6, 5)
    objective = ISogCLR(NUM_SAMPLES, gamma=1.0, beta=1.0, rho=0.4, temperature=0.2).double()
    run(objective, projections, range(6))
    for i in range(6):
        divergences = []
        for view in range(2):
            others = torch.cat([projections[v, [j for j in range(6) if j != i]] for v in range(2)])
            p = (others @ projections[view, i] / 0.2).softmax(0)
            divergences.append((p * (p * len(p)).log()).sum())
        expected = 0.4 - torch.stack(divergences).mean()
        close(objective.temperature_momenta[i], expected)


def test_without_rho_temperatures_rise_to_their_bound_unless_all_negatives_are_alike():
    objective = ISogCLR(NUM_SAMPLES, gamma=1.0, rho=0.0, learning_rate=0.5, max_temperature=0.5)
    projections, equal = unit_rows(2, 6, 5), unit_rows(1, 1, 5).expand(2, 6, 5)
    for _ in range(20):
        run(objective, projections, range(6))
        run(objective, equal, range(6, 12))
    torch.testing.assert_close(objective.temperatures[:6], torch.full((6,), 0.5))
    torch.testing.assert_close(objective.temperatures[6:], torch.full((6,), 0.1), rtol=1e-5, atol=0)


def test_only_the_samples_of_the_batch_change():
    objective = ISogCLR(NUM_SAMPLES)
    run(objective, unit_rows(2, 4, 5), [0, 1, 2, 3])
    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    run(objective, unit_rows(2, 4, 5), [2, 3, 4, 5])
    for name, buffer in objective.named_buffers():
        changed = (buffer - before[name]).abs() > 1e-5
        assert changed.nonzero().flatten().tolist() == [2, 3, 4, 5], name
        assert torch.equal(buffer[~changed], before[name][~changed]), name


def test_a_sample_that_is_there_twice_gets_the_mean():
    projections = unit_rows(2, 4, 5)
    apart, together = ISogCLR(NUM_SAMPLES), ISogCLR(NUM_SAMPLES)
    run(apart, projections, [0, 1, 2, 3])
    run(together, projections, [0, 1, 2, 0])
    for name, buffer in together.named_buffers():
        torch.testing.assert_close(buffer[0], apart.get_buffer(name)[[0, 3]].mean())


def test_evaluation_takes_the_temperature_of_the_start_and_has_the_gradient_of_its_value():
    projections = unit_rows(2, 4, 5)
    objective = ISogCLR(NUM_SAMPLES, learning_rate=0.5, temperature=0.3)
    fresh = run(objective.eval(), projections, [0, 1, 2, 3])
    run(objective.train(), unit_rows(2, 4, 5), [0, 1, 2, 3])
    objective.eval()
    torch.testing.assert_close(objective(ObjectiveBatch(projections=projections))[0], fresh)
    function = lambda z: objective(ObjectiveBatch(projections=z))[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, projections.requires_grad_())


def test_sogclr_has_one_temperature():
    objective = ISogCLR(NUM_SAMPLES, individual_temperatures=False, temperature=0.01, rho=5.0)
    assert dict(objective.named_buffers()).keys() == {"log_normalisers"}
    projections = unit_rows(2, 4, 5)
    dcl = Decoupled(0.01)(ObjectiveBatch(projections=projections))[0]
    torch.testing.assert_close(run(objective, projections, range(4)), 0.01 * (dcl - math.log(6)))


def test_start_weights_forgets():
    objective, fresh = ISogCLR(NUM_SAMPLES), ISogCLR(NUM_SAMPLES)
    run(objective, unit_rows(2, 4, 5), range(4))
    objective.start_weights()
    for name, buffer in fresh.named_buffers():
        assert torch.equal(objective.get_buffer(name), buffer)


@pytest.mark.parametrize(
    "arguments",
    [
        {"gamma": 0.0},
        {"gamma": 1.5},
        {"beta": 0.0},
        {"rho": -0.1},
        {"learning_rate": 0.0},
        {"temperature": 0.8},
        {"temperature": 0.04},
        {"min_temperature": 0.0},
        {"temperature": 0.0, "individual_temperatures": False},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        ISogCLR(NUM_SAMPLES, **arguments)


@pytest.mark.parametrize("ids", [[0, 1, 2, NUM_SAMPLES], [-1, 0, 1, 2]])
def test_an_id_without_state_is_refused(ids):
    with pytest.raises(ValueError, match=f"sample_ids hold {min(ids)} to {max(ids)}.*num_samples={NUM_SAMPLES}"):
        run(ISogCLR(NUM_SAMPLES), unit_rows(2, 4, 5), ids)
