"""The benchmarks run, on tiny sizes, and report what their documentation names. Nothing here looks at a clock."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from training_fixtures import SMALL

from training.benchmarks import gradient_cache, losses, measure, peers, scoring, tables


PIXELS = peers.Sizes(
    image_size=4,
    num_channels=1,
    patch_size=1,
    batch_size=2,
    num_levels=8,
    hidden_size=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
PATCHES = replace(PIXELS, num_channels=3, patch_size=2, palette=16)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_figures_are_positive_and_cover_the_targets(monkeypatch):
    noise = torch.randn(64, 64)
    monkeypatch.setattr(peers.losses, "step", lambda shape, variant: lambda: noise @ noise)
    results = {
        **peers.compare_pixel_step(1, PIXELS),
        **peers.compare_patch_step(1, PATCHES),
        **peers.compare_features(1, PATCHES, batch_sizes=(1, 64)),
        **peers.compare_generate(1, PATCHES),
        **peers.compare_both_losses(1),
    }
    assert all(math.isfinite(value) and value > 0 for value in results.values())
    assert set(peers.TARGETS) <= set(results)
    for name in results:
        assert name in measure.table(results, peers.TARGETS)


def peaks() -> list[float]:
    """Of steps that take the more memory the later they come: what a step leaves, the next one takes."""
    sizes = replace(PATCHES, batch_size=64)
    smallest = peers.memory_of_step("hybrid", PIXELS, 1)
    return [smallest, *(gradient_cache.memory(way, sizes, chunk_size=16, threads=1) for way in ("chunks", "whole"))]


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    assert min(measure.in_fresh_process(peaks)) > 0


def test_the_file_is_flat_and_holds_setting_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(peers.COMPARISONS, "pixel_step", lambda repeats: peers.compare_pixel_step(repeats, PIXELS))
    peers.main(f"--threads 1 --repeats 1 --only pixel_step --output {tmp_path / 'peers.json'}".split())
    content = json.loads((tmp_path / "peers.json").read_text())
    assert {"cpu", "threads", "repeats", "torch", "transformers", "pixel_step_hybrid_s", "pixel_step_ratio"} <= set(
        content
    )
    assert all(isinstance(value, str | int | float) for value in content.values())
    assert "pixel_step_ratio" in capsys.readouterr().out


def test_the_steps_of_one_setting_see_the_same_images():
    assert torch.equal(PIXELS.images(), PIXELS.images())


def test_nt_xent_equals_its_loop():
    projections = torch.nn.functional.normalize(torch.randn(2, 3, 5, dtype=torch.float64), dim=-1)
    rows, total = projections.flatten(0, 1), 0.0
    for i, anchor in enumerate(rows):
        candidates = [float(torch.exp(anchor @ row / 0.2)) for j, row in enumerate(rows) if j != i]
        total += math.log(sum(candidates)) - float(anchor @ rows[(i + 3) % 6]) / 0.2
    assert float(peers.nt_xent(projections)) == pytest.approx(total / 6)


def test_profile_names_the_parts(capsys):
    peers.profile(PATCHES)
    printed = capsys.readouterr().out
    for part in ("encoder forward", "decoder backward", "depth head forward", "training step", "generate"):
        assert part in printed


def test_gradient_cache_reports_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_cache, "PATCH_SIZES", PATCHES)
    measured = []

    def peak(function, way, sizes, chunk_size, threads):
        measured.append((function, way, sizes, chunk_size, threads))
        return {"whole": 8.0, "chunks": 3.0}[way]

    monkeypatch.setattr(gradient_cache, "in_fresh_process", peak)
    arguments = ["--repeats", "1", "--batch-size", "4", "--chunk-size", "2", "--threads", "1"]
    gradient_cache.main([*arguments, "--output", str(tmp_path / "figures.json")])
    results = json.loads((tmp_path / "figures.json").read_text())
    assert (results["batch_size"], results["chunk_size"], results["threads"]) == (4, 2, 1)
    assert results["whole_s"] > 0 and results["chunks_s"] > 0
    assert results["time_ratio"] == pytest.approx(results["chunks_s"] / results["whole_s"])
    sizes = replace(PATCHES, batch_size=4)
    assert measured == [(gradient_cache.memory, way, sizes, 2, 1) for way in ("whole", "chunks")]
    assert (results["whole_mib"], results["chunks_mib"], results["memory_ratio"]) == (8.0, 3.0, 3 / 8)


def test_the_price_of_the_likelihood_is_beside_the_contrastive_step(tmp_path, monkeypatch):
    small = [f"{key}={value}" for key, value in SMALL.items() if key.startswith(("model.", "optimization."))]
    monkeypatch.setattr(losses, "SHAPES", {"digits": ("digits.yaml", small)})
    monkeypatch.setattr(losses.MatrixProducts, "seconds", lambda products: products.flops() / 1e9)
    losses.main(["--threads", "1", "--repeats", "1", "--output", str(tmp_path / "losses.json")])
    results = json.loads((tmp_path / "losses.json").read_text())
    for variant in losses.VARIANTS:
        seconds, share, gflops = (results[f"digits_{variant}_{name}"] for name in ("s", "share", "gflops"))
        assert results[f"digits_{variant}_ratio"] == pytest.approx(seconds / results["digits_contrastive_s"])
        assert share == pytest.approx(gflops / seconds)
    assert results["digits_contrastive_gflops"] < results["digits_softmax_quarter_gflops"]
    assert results["digits_softmax_quarter_gflops"] < results["digits_softmax_gflops"]
    assert "logistic mixture, a quarter of the clean images" in tables.of_losses(results)


def test_memory_of_scoring_is_measured_for_both_heads(tmp_path, monkeypatch):
    def peak(function, head, num_images, threads):
        return {"softmax": 1000.0, "mixture": 200.0}[head] + num_images

    monkeypatch.setattr(scoring, "in_fresh_process", peak)
    scoring.main(["--num-images", "10", "--output", str(tmp_path / "scoring.json")])
    page = tables.of_scoring(json.loads((tmp_path / "scoring.json").read_text()))
    assert "| softmax | 1,010 MiB | at most 953.674: **missed** |" in page
    assert "| mixture | 210 MiB | at most 953.674: met |" in page


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_of_scoring_does_not_grow_with_what_a_head_needs_at_a_time():
    few, many = (measure.in_fresh_process(scoring.memory, "mixture", num, 1) for num in (200, 600))
    assert 0 < many < 2 * few + 50
