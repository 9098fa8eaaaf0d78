"""`hybrid embed`: what is written, what is left after a kill, what several processes write."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from training_fixtures import ROOT, TORCHRUN

from modeling_hybrid import HybridForOutOfDistributionDetection, HybridImageProcessor
from modeling_hybrid.commands import embed as embedding


def read(folder):
    """All shards as {column: list}, and the names of the files."""
    files = sorted(folder.glob("*.parquet"))
    tables = [parquet.read_table(path).to_pydict() for path in files]
    return {key: [value for table in tables for value in table[key]] for key in tables[0]}, [
        path.name for path in files
    ]


def assert_same(one, other):
    """Equal but for the rounding of another process."""
    (rows, files), (other_rows, other_files) = read(one), read(other)
    assert files == other_files and rows["id"] == other_rows["id"]
    for name in ("vector", "bits_per_dim"):
        np.testing.assert_allclose(rows[name], other_rows[name], atol=1e-4)


def test_rows_are_what_the_model_says(hybrid, detector, digits, tmp_path):
    result = hybrid("embed", detector, digits, "--output", tmp_path / "out", "--shard-size", 16, "--batch-size", 7)
    rows, files = read(tmp_path / "out")
    assert files == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    paths = sorted(digits.rglob("*.png"))
    assert rows["id"] == [str(path) for path in paths]
    assert "40 images" in result.stderr and result.stdout == ""
    model = HybridForOutOfDistributionDetection.from_pretrained(detector)
    x = HybridImageProcessor.from_pretrained(detector)([Image.open(path) for path in paths], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(rows["vector"], model.encoder(**x).pooler_output, atol=1e-4)
        np.testing.assert_allclose(rows["bits_per_dim"], model.bits_per_dim(**x), atol=1e-4)
        np.testing.assert_allclose(rows["strangeness"], model(**x).scores, atol=1e-3)


def test_without_a_detector_there_is_no_strangeness(hybrid, checkpoint, digits, tmp_path):
    hybrid("embed", checkpoint, digits, "--output", tmp_path / "out", "--limit", 3)
    rows, _ = read(tmp_path / "out")
    assert rows.keys() == {"id", "vector", "bits_per_dim"} and len(rows["id"]) == 3


class Killed(BaseException):
    pass


def test_goes_on_after_a_kill(hybrid, checkpoint, digits, tmp_path, monkeypatch):
    arguments = ["embed", checkpoint, digits, "--shard-size", 10, "--batch-size", 5]
    hybrid(*arguments, "--output", tmp_path / "whole")
    measure, calls = embedding.measure, []

    def count(*arguments):
        calls.append(arguments)
        if len(calls) == dies_at:
            raise Killed
        return measure(*arguments)

    monkeypatch.setattr(embedding, "measure", count)
    dies_at = 4
    with pytest.raises(Killed):
        hybrid(*arguments, "--output", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["embedding.json", "part-00000.parquet"]
    (tmp_path / "out" / "part-00001.parquet.1.partial").write_text("half of it")
    dies_at, calls[:] = None, []
    hybrid(*arguments, "--output", tmp_path / "out")
    assert len(calls) == 6
    assert_same(tmp_path / "out", tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "whole"))


def test_goes_on_with_the_same_only(hybrid, checkpoint, detector, digits, tmp_path):
    arguments = ["--output", tmp_path / "out", "--limit", 4]
    hybrid("embed", checkpoint, digits / "test", *arguments)
    assert "checkpoint" in hybrid("embed", detector, digits / "test", *arguments, code=1).stderr
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in "ab":
        Image.new("L", (8, 8)).save(copy / f"{name}.png")
    hybrid("embed", checkpoint, copy, "--output", tmp_path / "changing")
    Image.new("L", (8, 8)).save(copy / "aa.png")
    assert "other images" in hybrid("embed", checkpoint, copy, "--output", tmp_path / "changing", code=1).stderr
    assert "something else" in hybrid("embed", checkpoint, copy, "--output", copy, code=1).stderr


@pytest.mark.slow
def test_two_processes_share_the_shards(hybrid, checkpoint, digits, tmp_path):
    arguments = ["embed", checkpoint, digits, "--shard-size", 7, "--output"]
    hybrid(*arguments, tmp_path / "one")
    command = [*TORCHRUN, "-m", "hybrid_command", *map(str, arguments), str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "one", tmp_path / "two")
    assert done.stderr.count("images embedded") == 2


def test_help_comes_without_torch():
    """One real process: as installed, but for the script around it."""
    code = "import sys, hybrid_command\ntry: hybrid_command.main()\nfinally: print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, "embed", "--help"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--shard-size" in done.stdout and done.stdout.endswith("False\n")
