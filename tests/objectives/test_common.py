"""What every objective keeps: order and rotation do not matter, nothing overflows, state is saved, processes agree."""

import copy

import pytest
import torch
from objective_fixtures import DIM, LEARNT, change, draw_batch, gradients, make, take_samples, unit_rows
from other_processes import run_group

from modeling_hybrid.objectives import OBJECTIVES, Objective, ObjectiveBatch, objective_class


every_objective = pytest.mark.parametrize("name", OBJECTIVES)
# What is mixed for a sample depends on its place in the batch.
UNMIXED = {"mochi": {"num_mixed": 0, "num_query_mixed": 0}}
# Gates act on single coordinates.
HAS_AXES = {"simlap"}
ROWS = (*LEARNT, "keys", "patch_keys", "patch_embeddings", "teacher")
MOMENTUM = {"keys", "patch_keys", "patch_embeddings"}


def seasoned(name: str, **arguments) -> Objective:
    """One whose queues and states have seen a batch."""
    objective = make(name, **arguments)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    objective(draw_batch())
    torch.set_rng_state(state)
    return objective


@every_objective
def test_one_signature(name):
    objective = make(name)
    assert type(objective) is objective_class(name) and isinstance(objective, Objective)
    assert objective.needs and objective.needs <= set(ObjectiveBatch.__dataclass_fields__)
    loss, telemetry = objective(draw_batch())
    assert loss.shape == () and loss.isfinite()
    assert {"effective_rank", "uniformity"} <= telemetry.keys()
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in telemetry.values())
    assert bool(objective.needs & MOMENTUM) == (objective.momentum is not None)
    positives, negatives = objective.counts([0, 1, 2], 6)
    assert positives >= 0 and negatives >= 0


@every_objective
def test_every_missing_part_is_named(name):
    for part in make(name).needs:
        batch = draw_batch()
        setattr(batch, part, None)
        with pytest.raises(ValueError, match=f"needs.*{part}"):
            make(name)(batch)


@every_objective
def test_too_few_views_or_samples_are_refused(name):
    objective = make(name)
    for kinds, batch_size in (((0,) * (objective.min_views - 1), 4), ((0, 1, 2), objective.min_samples - 1)):
        if kinds and batch_size:
            with pytest.raises(ValueError, match=rf"not {len(kinds)} view\(s\) of {batch_size} image\(s\)"):
                objective(draw_batch(kinds, batch_size))


@every_objective
def test_the_order_of_samples_does_not_matter(name):
    batch = draw_batch()
    orders = (torch.arange(6), torch.randperm(6))
    losses = [seasoned(name, **UNMIXED.get(name, {}))(take_samples(batch, order))[0] for order in orders]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - HAS_AXES))
def test_a_rotation_of_the_space_does_not_matter(name):
    """Of the projections, and of whatever the objective keeps in the same space."""
    batch = draw_batch()
    rotations = {size: torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0] for size in (DIM, 5)}
    rotated = change(batch, lambda key, part: part @ rotations[part.shape[-1]] if key in ROWS else part)
    one, other = seasoned(name).double(), seasoned(name).double()
    with torch.no_grad():
        for tensor in other.state_dict(keep_vars=True).values():
            for size, rotation in rotations.items():
                if tensor.shape[-1:] == (size,):
                    turned = tensor @ rotation
                    # A square matrix maps the space to itself.
                    tensor.copy_(rotation.T @ turned if tensor.shape == (size, size) else turned)
    torch.testing.assert_close(one(batch)[0], other(rotated)[0])


@every_objective
@pytest.mark.parametrize("batch_size", [2, 6])
def test_finite_at_collapse(name, batch_size):
    """All rows equal: the loss and every gradient stay finite."""
    batch = draw_batch(batch_size=batch_size)
    first = unit_rows(1, 1, DIM)
    same = change(
        batch,
        lambda key, part: (
            (first if part.shape[-1] == DIM else torch.ones(5)).to(part).expand(part.shape).clone()
            if key in ROWS
            else part
        ),
    )
    for key in LEARNT:
        getattr(same, key).requires_grad_()
    objective = seasoned(name)
    loss, telemetry = objective(same)
    loss.backward()
    found = gradients(same, objective)
    assert loss.isfinite() and found
    assert all(gradient.isfinite().all() for gradient in found.values())
    if "alignment" in telemetry:
        torch.testing.assert_close(telemetry["alignment"].item(), 0.0, atol=1e-5, rtol=0)
    torch.testing.assert_close(telemetry["uniformity"].item(), 0.0, atol=1e-5, rtol=0)
    torch.testing.assert_close(telemetry["effective_rank"].item(), 1.0, atol=1e-3, rtol=0)


@every_objective
def test_finite_with_two_samples_and_at_a_cold_temperature(name):
    cold = {"temperature": 0.01} if "temperature" in vars(make(name)) else {}
    for dtype in (torch.float32, torch.float64):
        for _ in range(5):
            batch = draw_batch(batch_size=2, dtype=dtype)
            objective = seasoned(name, **cold)
            loss, _ = objective(batch)
            loss.backward()
            assert loss.isfinite()
            assert all(gradient.isfinite().all() for gradient in gradients(batch, objective).values())


@every_objective
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_single(name, autocast):
    exact = draw_batch(dtype=torch.bfloat16)
    single = change(exact, lambda key, part: part.float() if part.is_floating_point() else part)
    expected, _ = make(name)(single)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = make(name)(exact)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(exact).values())


@every_objective
def test_gradient_is_that_of_the_value(name):
    """Against finite differences, where the loss is not a surrogate whose gradient is another function's."""
    objective = seasoned(name).double().eval()
    if objective.gradient_is_detached:
        pytest.skip("part of the formula is detached; the objective's own tests check its gradient")
    batch = draw_batch(batch_size=3)
    leaves = [key for key in LEARNT if key in objective.needs]

    def loss(*values):
        return objective(change(batch, lambda key, part: dict(zip(leaves, values, strict=True)).get(key, part)))[0]

    assert torch.autograd.gradcheck(loss, [getattr(batch, key) for key in leaves])


@every_objective
def test_state_is_saved_and_goes_on_exactly(name):
    """Three steps; a copy made after the first from its saved state sees the same from there."""
    batches = [draw_batch() for _ in range(3)]
    objective, restored = make(name), make(name)
    objective(batches[0])
    restored.load_state_dict(copy.deepcopy(objective.state_dict()))
    for batch in batches[1:]:
        assert torch.equal(objective(batch)[0], restored(batch)[0])
    for key, value in objective.state_dict().items():
        assert torch.equal(value, restored.state_dict()[key]), key


@every_objective
def test_evaluation_leaves_the_state_alone(name):
    objective = make(name)
    objective(draw_batch())
    before = copy.deepcopy(objective.state_dict())
    objective.eval()
    batch = draw_batch()
    batch.sample_ids = None
    assert objective(batch)[0].isfinite()
    for key, value in objective.state_dict().items():
        assert torch.equal(value, before[key]), key


# Several processes.


def two_steps(name: str, batches: list[ObjectiveBatch]) -> tuple[torch.Tensor, dict, dict]:
    """Losses, gradients (of the parts and of the parameters) of the second step, and the state after it."""
    objective = make(name).double()
    losses = []
    for batch in batches:
        objective.zero_grad()
        loss, _ = objective(batch)
        if loss.requires_grad:
            loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), gradients(batches[-1], objective), objective.state_dict()


def one_process_of_many(rank: int, num_processes: int, batches: list[ObjectiveBatch], path: str) -> None:
    size = batches[0].projections.shape[1] // num_processes
    mine = slice(rank * size, (rank + 1) * size)
    results = {name: two_steps(name, [take_samples(batch, mine) for batch in batches]) for name in OBJECTIVES}
    torch.save(results, f"{path}-{rank}.pt")


@pytest.fixture(scope="module", params=[1, 2, 4])
def processes(request, tmp_path_factory):
    """The batches, and what each process of 1, 2 or 4 has found on its share of them."""
    torch.manual_seed(0)
    batches = [take_samples(draw_batch(batch_size=8), slice(None)) for _ in range(2)]
    folder = tmp_path_factory.mktemp("processes")
    path = str(folder / "result")
    plain = [change(batch, lambda key, part: part.detach()) for batch in batches]
    run_group(one_process_of_many, request.param, folder, request.param, plain, path)
    return batches, [torch.load(f"{path}-{rank}.pt") for rank in range(request.param)]


@every_objective
def test_many_processes_equal_one(processes, name):
    """Value, the gradient of every part and parameter as DDP averages it, and the state, which no two disagree on."""
    batches, found = processes
    losses, expected, state = two_steps(name, [take_samples(batch, slice(None)) for batch in batches])
    results = [result[name] for result in found]
    torch.testing.assert_close(torch.stack([result[0] for result in results]).mean(0), losses)
    for key, gradient in expected.items():
        parts = [result[1][key] / len(results) for result in results]
        is_parameter = key in state
        torch.testing.assert_close(sum(parts) if is_parameter else torch.cat(parts, dim=1), gradient, msg=key)
    for key, value in state.items():
        for result in results:
            assert torch.equal(result[2][key], results[0][2][key]), key
        torch.testing.assert_close(results[0][2][key], value, msg=key)
