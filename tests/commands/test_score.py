"""`hybrid score`: exact likelihoods, and maps of surprise that add up."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_hybrid import HybridForImageGeneration, HybridImageProcessor
from modeling_hybrid.commands.surprise import surprise


def test_rows_and_maps(hybrid, checkpoint, digits, tmp_path):
    folder = digits / "test"
    result = hybrid("score", checkpoint, folder, "--map", tmp_path / "maps", "--batch-size", 4)
    rows = list(csv.DictReader(result.stdout.splitlines()))
    model = HybridForImageGeneration.from_pretrained(checkpoint)
    x = HybridImageProcessor.from_pretrained(checkpoint)(sorted(folder.iterdir()), return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose([float(row["log_likelihood"]) for row in rows], model.log_likelihood(**x), atol=1e-3)
        np.testing.assert_allclose([float(row["bits_per_dim"]) for row in rows], model.bits_per_dim(**x), atol=1e-4)
    maps = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert [row["id"] for row in rows] == [str(path) for path in sorted(folder.iterdir())]
    assert maps == [f"{i:06d}_{30 + i}.png.png" for i in range(10)]

    hybrid("score", checkpoint, folder, "--format", "jsonl", "--output", tmp_path / "rows.jsonl", "--limit", 2)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows[:2]]


def test_the_brightest_patch_is_the_most_surprising():
    nll_map = np.array([0.0, 1.0, 5.0, 2.0])
    picture = surprise(Image.new("L", (8, 8)), nll_map)
    right = np.asarray(picture.convert("L"), dtype=int)[:, picture.width // 2 :]
    tall, wide = right.shape
    patches = [right[y * tall // 4, x * wide // 4] for y in (1, 3) for x in (1, 3)]
    assert np.argsort(patches).tolist() == np.argsort(nll_map).tolist()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "."], 1, "no folder nowhere"),
        ([".", "."], 1, "holds no config.json"),
        (["CHECKPOINT", "nothing.png"], 1, "no file or folder nothing.png"),
        (["CHECKPOINT", ".", "--device", "abacus"], 1, "--device abacus"),
        (["CHECKPOINT", ".", "--dtype", "int8"], 2, "int8"),
        (["CHECKPOINT"], 2, "sources"),
    ],
)
def test_refused(hybrid, checkpoint, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("one.png")
    result = hybrid("score", *[str(checkpoint) if one == "CHECKPOINT" else one for one in arguments], code=code)
    assert said in result.stderr and "Traceback" not in result.stderr


def test_foreign_code_runs_only_if_trusted(hybrid, digits, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ValueError('the code ran')")
    refused = hybrid("score", tmp_path, digits, code=1)
    assert "'evil'" in refused.stderr and "--trust-remote-code" in refused.stderr
    assert not (tmp_path / "ran").exists()
    assert "the code ran" in hybrid("score", tmp_path, digits, "--trust-remote-code", code=1).stderr
    assert (tmp_path / "ran").exists()


def test_no_likelihood(hybrid, make_model, digits, tmp_path):
    model = make_model(encoder_attention="bidirectional", generative_weight=0.0)
    model.save_pretrained(tmp_path)
    HybridImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    assert "no likelihood" in hybrid("score", tmp_path, digits, code=1).stderr
    hybrid("embed", tmp_path, digits, "--output", tmp_path / "out", "--limit", 3)
