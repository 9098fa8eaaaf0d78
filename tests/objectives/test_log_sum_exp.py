"""The tiled log-sum-exp equals the plain one, in the objectives that are built on it too, in memory that stays flat."""

import pytest
import torch
from objective_fixtures import make, unit_rows, value_and_gradient

from modeling_hybrid.objectives import ObjectiveBatch, log_sum_exp
from modeling_hybrid.objectives.log_sum_exp import masked_logsumexp


OBJECTIVES = ["info_nce", "clip", "decoupled", "sup_con"]


@pytest.fixture
def tiny_tiles(monkeypatch):
    """From here on everything is tiled, and no tile fits 37 rows evenly."""

    def start():
        for name, value in {"TILED_ABOVE": 0, "ROWS": 8, "COLUMNS": 5}.items():
            monkeypatch.setattr(log_sum_exp, name, value)

    return start


def exactly(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("num_left_out", [0, 1, 3])
def test_equals_logsumexp_of_the_kept(tiny_tiles, tiled, num_left_out):
    tiny_tiles()
    queries, keys, scale = unit_rows(37, 6), unit_rows(23, 6), torch.tensor(7.0, dtype=torch.float64)
    left_out = torch.randint(23, (37, num_left_out))
    if num_left_out == 3:
        left_out[:, 2] = left_out[:, 0]
    weight = torch.randn(37, dtype=torch.float64)

    def reference(queries, keys, scale):
        rows = []
        for query, out in zip(queries, left_out.tolist(), strict=True):
            kept = [j for j in range(len(keys)) if j not in out]
            rows.append(torch.logsumexp(scale * keys[kept] @ query, dim=0))
        return torch.stack(rows)

    def run(function):
        leaves = [leaf.clone().requires_grad_() for leaf in (queries, keys, scale)]
        values = function(*leaves)
        (values * weight).sum().backward()
        return values.detach(), [leaf.grad for leaf in leaves]

    found = run(lambda *leaves: masked_logsumexp(*leaves, left_out=left_out if num_left_out else None, tiled=tiled))
    exactly(found, run(reference))


@pytest.mark.parametrize("tiled", [False, True])
def test_weights_are_factors_of_the_terms(tiny_tiles, tiled):
    """Of a sum in the logarithm, with some of them zero; a factor of all adds its logarithm."""
    tiny_tiles()
    queries, keys, scale = unit_rows(37, 6), unit_rows(23, 6), torch.tensor(7.0, dtype=torch.float64)
    weights = torch.rand(37, 23, dtype=torch.float64).clamp(min=0.3) - 0.3
    assert 0.2 < (weights == 0).double().mean() < 0.4
    upstream = torch.randn(37, dtype=torch.float64)

    def run(function):
        leaves = [leaf.clone().requires_grad_() for leaf in (queries, keys, scale)]
        values = function(*leaves)
        (values * upstream).sum().backward()
        return values.detach(), [leaf.grad for leaf in leaves]

    found = run(lambda *leaves: masked_logsumexp(*leaves, tiled=tiled, log_weights=weights.log()))
    exactly(found, run(lambda q, k, scale: (weights * torch.exp(scale * q @ k.T)).sum(dim=1).log()))
    fivefold = masked_logsumexp(queries, keys, 7.0, tiled=tiled, log_weights=(5 * weights).log())
    exactly(fivefold, found[0] + torch.tensor(5.0, dtype=torch.float64).log())


@pytest.mark.parametrize("tiled", [False, True])
def test_a_weight_of_zero_leaves_out_and_a_row_without_keys_costs_nothing(tiny_tiles, tiled):
    tiny_tiles()
    queries, keys = unit_rows(37, 6), unit_rows(23, 6)
    left_out = torch.randint(23, (37, 3))
    log_weights = torch.zeros(37, 23, dtype=torch.float64).scatter(1, left_out, -torch.inf)

    def run(**arguments):
        return value_and_gradient(lambda q: masked_logsumexp(q, keys, 7.0, tiled=tiled, **arguments).sum(), queries)

    exactly(run(log_weights=log_weights), run(left_out=left_out))
    exactly(run(log_weights=torch.zeros_like(log_weights), left_out=left_out), run(left_out=left_out))
    log_weights[5] = -torch.inf
    weights = log_weights.clone().requires_grad_()
    rows = queries.clone().requires_grad_()
    values = masked_logsumexp(rows, keys, 7.0, tiled=tiled, log_weights=weights)
    values.sum().backward()
    assert values[5] == 0 and (rows.grad[5] == 0).all() and (rows.grad[4] != 0).all() and weights.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tiled", [False, True])
def test_a_large_scale_stays_finite(tiny_tiles, tiled, dtype):
    tiny_tiles()
    rows, scale = unit_rows(37, 6, dtype=dtype).requires_grad_(), torch.tensor(500.0, dtype=dtype, requires_grad=True)
    values = masked_logsumexp(rows, rows, scale, left_out=torch.arange(37)[:, None], tiled=tiled)
    values.sum().backward()
    assert all(part.isfinite().all() for part in (values, rows.grad, scale.grad))
    nearest = (rows @ rows.T).fill_diagonal_(-torch.inf).amax(1)
    assert (values >= 500 * nearest - 1e-2).all() and (values <= 500 * nearest + 4).all()


def test_many_similarities_are_tiled_by_default(tiny_tiles):
    rows = unit_rows(37, 6).requires_grad_()
    assert "Tiled" not in type(masked_logsumexp(rows, rows, 1.0).grad_fn).__name__
    tiny_tiles()
    assert "Tiled" in type(masked_logsumexp(rows, rows, 1.0).grad_fn).__name__


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_do_not_depend_on_the_tiles(tiny_tiles, name, num_views):
    projections, labels = unit_rows(num_views, 37, 6), torch.randint(5, (37,))

    def run():
        objective = make(name).double()
        loss = lambda z: objective(ObjectiveBatch(projections=z, labels=labels))[0]  # noqa: E731
        found = value_and_gradient(loss, projections)
        return found, [parameter.grad for parameter in objective.parameters()]

    plain = run()
    tiny_tiles()
    exactly(run(), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_memory_is_flat(run_python, name):
    """All similarities of these rows would be 4 to 16 GB."""
    output = run_python(
        f"""
        import re
        from pathlib import Path
        import torch
        from modeling_hybrid.objectives import ObjectiveBatch, objective_class


        def status(field):
            return int(re.search(rf"{{field}}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])


        def run(batch_size):
            rows = torch.nn.functional.normalize(torch.randn(2, batch_size, 128), dim=-1).requires_grad_()
            batch = ObjectiveBatch(projections=rows, labels=torch.arange(batch_size) % 1000)
            # The peak that `resource` tells is inherited from the parent process; this one begins here.
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            objective_class("{name}")()(batch)[0].backward()
            assert rows.grad.isfinite().all()
            return status("VmHWM") - before


        run(1100)
        print(run(32768))
        """
    )
    # In KiB, on Linux; 200 MB.
    assert int(output.split()[-1]) < 200_000_000 / 1024
