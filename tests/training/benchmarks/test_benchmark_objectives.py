"""The plain objectives are the same as ours, and the benchmark reports what it names. Nothing here looks at a clock."""

import json
import math
import multiprocessing
import sys
from types import SimpleNamespace

import pytest
import torch

from modeling_hybrid.objectives import OBJECTIVES
from modeling_hybrid.objectives.base import LOCAL
from training.benchmarks import measure, objectives


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_processes(monkeypatch):
    """Memory is not measured; what would have been is in the list."""
    calls = []
    monkeypatch.setattr(objectives, "in_fresh_process", lambda function, *arguments: calls.append(arguments) or 3.0)
    return calls


def value_and_gradients(loss, name, batch_size=12):
    """Of a fresh case in float64, all gradients that the benchmark asks for."""
    objective, batch = objectives.draw(name, batch_size)
    objective = objective.double()
    for part, tensor in batch.given().items():
        if tensor.is_floating_point():
            setattr(batch, part, tensor.detach().double().requires_grad_(tensor.requires_grad))
    value = loss(objective, batch)
    return value.detach(), *torch.autograd.grad(value, [batch.projections, *objective.parameters()])


@pytest.mark.parametrize("name", objectives.PLAIN)
def test_the_plain_objective_is_the_same(name):
    expected = value_and_gradients(objectives.ours, name)
    found = value_and_gradients(objectives.PLAIN[name].loss, name)
    torch.testing.assert_close(found, expected)
    assert expected[1].abs().max() > 1e-3


@pytest.mark.parametrize("name", ["info_nce", "swav"])
def test_the_objective_of_lightly_is_the_same(name):
    pytest.importorskip("lightly.loss")
    # Not the gradients: lightly brings the rows to length one itself, with gradient.
    expected, *_ = value_and_gradients(objectives.ours, name)
    found, *_ = value_and_gradients(objectives.lightly_losses()[name], name)
    torch.testing.assert_close(found, expected)


def test_cases_are_all_objectives_and_plain_ones_are_cases():
    assert set(objectives.CASES) == set(OBJECTIVES) | {"moco"}
    assert set(objectives.PLAIN) <= set(objectives.CASES)
    assert set(objectives.TILED) <= set(objectives.PLAIN)


@pytest.mark.parametrize("name", objectives.CASES)
def test_the_batch_is_what_the_objective_needs_and_the_same_every_time(name):
    objective, batch = objectives.draw(name, 4)
    assert set(batch.given()) == objective.needs | {"view_kinds"}
    assert (LOCAL in batch.view_kinds) == (name in ("demi", "swav"))
    if (queue := getattr(objective, "queue", None)) is not None:
        assert queue.read(torch.float32)[1].all()
    for part, tensor in objectives.draw(name, 4)[1].given().items():
        assert torch.equal(tensor, getattr(batch, part))
        if part in ("projections", "keys", "patch_projections", "patch_keys"):
            torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]))


@pytest.mark.parametrize("name", objectives.CASES)
def test_figures_are_positive_and_there_for_ours_and_plain(name, no_processes, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    results = objectives.compare(name, 4, repeats=1, max_plain_gib=1.0)
    hows = ["ours", "plain"] if name in objectives.PLAIN else ["ours"]
    expected = {f"{name}_4_{how}_{unit}" for how in hows for unit in ("ms", "mib")} | {f"{name}_4_whole_ms"}
    assert set(results) == expected | ({f"{name}_4_ratio"} if len(hows) > 1 else set())
    assert all(math.isfinite(value) and value > 0 for value in results.values())
    assert no_processes == [(name, how, 4, 1) for how in hows]


def test_every_pass_reaches_rows_and_parameters(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.autograd, "grad", lambda value, leaves: asked.extend(leaves))
    objective, batch = objectives.draw("swav", 4)
    objectives.forward_and_backward(objectives.ours, objective, batch)()
    assert [id(leaf) for leaf in asked] == [id(batch.projections), id(objective.prototypes)]


def test_a_plain_objective_that_is_too_large_is_left_out(no_processes):
    gib = objectives.PLAIN["clip"].gib(4)
    assert gib == pytest.approx(5 * 4 * 4 * 4 / 2**30)
    assert "clip_4_plain_ms" in objectives.compare("clip", 4, repeats=1, max_plain_gib=gib)
    results = objectives.compare("clip", 4, repeats=1, max_plain_gib=0.9 * gib)
    assert set(results) == {"clip_4_ours_ms", "clip_4_whole_ms", "clip_4_ours_mib"}
    *_, line = objectives.markdown(results, ["clip"], [4], max_plain_gib=0.5).splitlines()
    assert line.endswith("| 3.0 | not run, over 0.5 GiB |")
    assert "| - | - |" in line


def test_the_table_has_columns_for_lightly_where_it_ran():
    results = {"swav_8_ours_ms": 1.26, "swav_8_plain_ms": 2.0, "swav_8_ratio": 0.63, "swav_8_ours_mib": 4.0}
    results["swav_8_whole_ms"] = 3.0
    assert objectives.markdown(results, ["swav", "demi"], [8], 4.0).splitlines() == [
        "| objective | B | ours ms | plain ms | ratio | whole ms | ours MiB | plain MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        "| swav | 8 | 1.3 | 2.0 | 0.63 | 3.0 | 4.0 | not run, over 4 GiB |",
        "| demi | 8 | - | - | - | - | - | - |",
    ]
    head, _, line = objectives.markdown(results | {"swav_8_lightly_ms": 5.0}, ["swav"], [8], 4.0).splitlines()
    assert "| plain ms | lightly ms | ratio |" in head
    assert "| 2.0 | 5.0 | 0.63 |" in line


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_is_that_of_the_matrices_in_a_process_of_its_own(monkeypatch):
    # Forked from one that has imported the package.
    forked = SimpleNamespace(get_context=lambda method: multiprocessing.get_context("forkserver"))
    monkeypatch.setattr(measure, "multiprocessing", forked)
    # Logits and their exponentials at least, and no more than is taken for granted; rows and the like are small.
    peak = objectives.in_fresh_process(objectives.memory, "clip", "plain", 1024, 1)
    assert 2 * 4 < peak < 2**10 * objectives.PLAIN["clip"].gib(1024) + 8


def test_the_file_is_flat_and_holds_setting_figures_and_targets(tmp_path, no_processes, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightly", None)
    names = ["demi", *objectives.TILED]
    objectives.main(
        f"--threads 1 --repeats 1 --batch-sizes 4 --only {' '.join(names)} --large "
        f"--output {tmp_path / 'objectives.json'}".split()
    )
    content = json.loads((tmp_path / "objectives.json").read_text())
    assert {"cpu", "threads", "repeats", "torch", "demi_4_ours_ms", "demi_4_ours_mib"} <= set(content)
    assert {target.replace("_4096_", "_4_") for target in objectives.TARGETS} <= set(content)
    assert all(isinstance(value, str | int | float) for value in content.values())
    assert ("info_nce", "ours", 32768, 1) in no_processes
    printed = capsys.readouterr().out
    assert "lightly is not installed" in printed
    assert "| sup_con | 4 |" in printed
    assert "sup_con_memory_32768_mib" in printed and "met" in printed
