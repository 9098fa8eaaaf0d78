"""`hybrid search`: exact neighbours, the same by FAISS, and what does not compare."""

import csv

import numpy as np
import pytest
from PIL import Image

from modeling_hybrid.commands.collection import Collection
from modeling_hybrid.commands.search import exact, unit


@pytest.fixture(scope="module")
def collection(tmp_path_factory, checkpoint, digits):
    from typer.testing import CliRunner

    from modeling_hybrid.commands.app import app

    folder = tmp_path_factory.mktemp("collection") / "out"
    arguments = ["embed", checkpoint, digits, "--output", folder, "--shard-size", 9]
    assert CliRunner().invoke(app, list(map(str, arguments))).exit_code == 0
    return folder


def test_neighbours(hybrid, checkpoint, collection, digits, tmp_path):
    result = hybrid("search", checkpoint, collection, digits / "test", "-k", 3, "--sheet", tmp_path / "sheet.png")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert len(rows) == 30
    parts = list(Collection(collection).vectors())
    names, vectors = [name for part, _ in parts for name in part], unit(np.concatenate([part for _, part in parts]))
    for i in range(0, 30, 3):
        similarities = vectors @ vectors[names.index(rows[i]["query"])]
        assert rows[i]["id"] == rows[i]["query"] and [row["rank"] for row in rows[i : i + 3]] == ["1", "2", "3"]
        found = [float(row["similarity"]) for row in rows[i : i + 3]]
        np.testing.assert_allclose(found, np.sort(similarities)[:-4:-1], atol=1e-4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = sheet.size
        assert width * 91 == height * 37  # 4 columns and 10 rows of 8 x 8 with lines between


def test_fewer_than_asked_for(collection):
    names, similarities = exact(Collection(collection), np.ones((2, 32), "float32") / 32**0.5, 100)
    assert similarities.shape == (2, 40) and len(set(names[0])) == 40
    assert (np.diff(similarities, axis=1) <= 0).all()


@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_by_faiss(hybrid, checkpoint, collection, digits, index):
    pytest.importorskip("faiss")
    arguments = ["search", checkpoint, collection, digits / "test", "-k", 1]
    rows = list(csv.DictReader(hybrid(*arguments, "--index", index).stdout.splitlines()))
    # Its own list is looked into, so every image finds at least itself.
    assert [row["id"] for row in rows] == [row["query"] for row in rows]
    np.testing.assert_allclose([float(row["similarity"]) for row in rows], 1, atol=1e-4)


def test_refused(hybrid, checkpoint, collection, digits, tmp_path):
    assert "no embedded collection" in hybrid("search", checkpoint, tmp_path, digits, code=1).stderr
    assert "do not compare" in hybrid("search", checkpoint, collection, digits, "--dtype", "bfloat16", code=1).stderr
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in collection.iterdir():
        if path.name != "part-00001.parquet":
            (copy / path.name).write_bytes(path.read_bytes())
    assert "no part-00001.parquet" in hybrid("search", checkpoint, copy, digits, code=1).stderr
