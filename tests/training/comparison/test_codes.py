"""Pairs of digits, SepCLR on them, and what is read from its codes: each factor from its own, on the same images."""

import json

import datasets
import numpy as np
import pytest
from training_fixtures import SMALL, load_config, reset_accelerate, train_whole

from training import compare_codes
from training.comparison.systems import table
from training.data.splits import digits
from training.image_sets import digit_pairs
from training.pages import ROOT


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "digit_pairs"
    assert digit_pairs.main(["--output-dir", str(folder)]) == 0
    return folder


def test_half_of_the_images_have_a_second_digit(pairs):
    built = datasets.load_dataset(str(pairs), cache_dir=str(pairs / "cache"))
    for name, original in digits().items():
        rows = built[name]
        assert rows["common"][:] == original["label"][:]
        has_two = np.array(rows["label"][:]) > 0
        assert abs(has_two.sum() - len(rows) / 2) < 1 and len(set(rows["label"][:])) == 11
        assert has_two[:40].any() and not has_two[:40].all()
        pixels = np.stack([np.asarray(image) for image in rows["image"][:40]])
        assert (pixels[:, 4:12, :8] == np.stack([np.asarray(image) for image in original["image"][:40]])).all()
        assert (pixels[:, :, 8:].any(axis=(1, 2)) == has_two[:40]).all()
        assert not pixels[:, :4].any() and not pixels[:, 12:].any()


def test_what_is_read_from_the_codes(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    small = {**SMALL, "data.dataset": pairs, "data.validation_fraction": 0.2, "optimization.num_steps": 2}
    folders = {}
    for name, objective in (("ours", "{name: sep_clr, code_size: 4}"), ("control", "{name: info_nce}")):
        folders[name] = tmp_path / name
        overrides = {**small, "output_dir": folders[name], "model.objective": objective}
        train_whole(load_config(ROOT / "training/configs/digit_pairs.yaml", [f"{k}={v}" for k, v in overrides.items()]))
    output = tmp_path / "codes.json"
    command = [str(folders["ours"]), "--controls", str(folders["control"]), "--output", str(output)]
    assert compare_codes.main(command) == 0
    found = json.loads(output.read_text())["arms"]
    (ours,), (control,) = found["sep_clr"]["runs"], found["control"]["runs"]
    # Undivided projections tell the same of a factor whatever the code; codes of four numbers do not.
    assert control["common_accuracy"] == control["common_leak"] != ours["common_accuracy"] != ours["common_leak"]
    difference = found["sep_clr"]["minus_control"]["salient_accuracy"]["mean"]
    assert difference == pytest.approx(ours["salient_accuracy"] - control["salient_accuracy"])
    assert "SepCLR, two codes, beside InfoNCE" in table(json.loads(output.read_text()))
    reset_accelerate()
    capsys.readouterr()
    assert compare_codes.main([*command, "--common-column", "left"]) == 1
    assert "no classes in its column 'left'" in capsys.readouterr().err
    assert compare_codes.main([*command[:1], *command]) == 1
    assert "The runs have seeds [0, 0], their controls [0]" in capsys.readouterr().err
