"""`hybrid curate`: planted duplicates, leaks and odd files are found, each under its name, and nothing else is."""

import csv
from io import BytesIO

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from modeling_hybrid import HybridForOutOfDistributionDetection, HybridImageProcessor
from modeling_hybrid.commands.duplicates import joined, look_alikes, near_duplicates, nearest
from modeling_hybrid.commands.looks import look, oddities
from modeling_hybrid.commands.progress import Progress
from modeling_hybrid.commands.sources import Item


def read(folder):
    """Rows of the CSV by finding."""
    found = {}
    with open(folder / "findings.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["finding"], []).append(row)
    return found


def groups(rows, folder):
    """Names by group, in the order of the ranks."""
    found = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row["id"].removeprefix(f"{folder}/"))
        assert int(row["rank"]) == len(found[row["group"]])
    return sorted(found.values())


def test_duplicates_and_leaks(curated, planted):
    found = read(curated[0])
    assert groups(found["exact_duplicate"], planted) == [["train/03.png", "train/<img src=x onerror=alert(1)>.png"]]
    assert groups(found["exact_leak"], planted) == [["train/04.png", "test/leak.bmp"]]
    assert groups(found["near_leak"], planted) == [["train/05.png", "test/again.jpg"]]
    near = [["train/06.png", "train/shifted.png"], ["train/07.png", "train/darker.png"]]
    assert groups(found["near_duplicate"], planted) == near
    assert all(0.99 <= float(row["value"]) <= 1 for row in found["near_leak"] + found["near_duplicate"])
    assert [row["source"] for row in found["exact_leak"]] == [str(planted / "train"), str(planted / "test")]
    alike = [name for group in groups(found["look_alike"], planted) for name in group]
    copies = {
        "train/<img src=x onerror=alert(1)>.png",
        "test/leak.bmp",
        "test/again.jpg",
        "train/shifted.png",
        "train/darker.png",
    }
    assert len(alike) >= 3 and not copies & set(alike)


def test_strange_plain_and_busy(curated, planted, checkpoint):
    found = read(curated[0])
    assert len(found["strangest"]) == len(found["plainest"]) == len(found["busiest"]) == 3
    for finding, name in (("strangest", "noise"), ("plainest", "flat"), ("busiest", "noise")):
        assert found[finding][0]["id"] == str(planted / "test" / f"{name}.png")
    model = HybridForOutOfDistributionDetection.from_pretrained(checkpoint)
    processor = HybridImageProcessor.from_pretrained(checkpoint)
    for rows in (found["plainest"], found["busiest"]):
        with torch.no_grad():
            bits = model.bits_per_dim(**processor([row["id"] for row in rows], return_tensors="pt"))
        np.testing.assert_allclose([float(row["value"]) for row in rows], bits, atol=1e-4)
    assert np.all(np.diff([float(row["value"]) for row in found["plainest"]]) >= 0)
    assert np.all(np.diff([float(row["value"]) for row in found["busiest"]]) <= 0)


def test_files(curated, planted):
    output, said = curated
    found = read(output)
    assert [(row["id"], row["source"]) for row in found["broken"]] == [
        (str(planted / "train" / "broken.png"), str(planted / "train"))
    ]
    assert [row["id"] for row in found["ignored"]] == [str(planted / "train" / "notes.txt")]
    assert {row["id"].rsplit("/")[-1]: row["detail"] for row in found["odd"]} == {
        "a_png.jpg": "PNG by its content, JPEG by its name",
        "again.jpg": "JPEG, most are PNG",
        "leak.bmp": "mode RGB, most are mode L; BMP, most are PNG",
        "moves.gif": "mode P, most are mode L; GIF, most are PNG; "
        "several frames (the first is looked at), most are of one frame",
    }
    assert "Exact leaks: 1\n" in said and "1 of 70 images cannot be read" in said


def test_a_detector_says_what_is_strange(hybrid, detector, digits, noise, tmp_path):
    hybrid("curate", detector, digits, noise, "--output", tmp_path / "out", "--num-shown", 5)
    rows = read(tmp_path / "out")["strangest"]
    assert {row["id"] for row in rows} == {str(path) for path in noise.iterdir()}
    model = HybridForOutOfDistributionDetection.from_pretrained(detector)
    x = HybridImageProcessor.from_pretrained(detector)([row["id"] for row in rows], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose([float(row["value"]) for row in rows], model(**x).scores, atol=1e-3)


def test_a_limit_leaves_some_of_each_source(hybrid, checkpoint, digits, tmp_path):
    sources = [digits / "train", digits / "train" / "00.png"]
    hybrid("curate", checkpoint, *sources, "--limit", 2, "--output", tmp_path / "out")
    found = read(tmp_path / "out")
    assert groups(found["exact_leak"], digits) == [["train/00.png", "train/00.png"]]


def test_nothing_found_is_a_header(hybrid, make_model, digits, tmp_path):
    model = make_model(encoder_attention="bidirectional", generative_weight=0.0)
    model.save_pretrained(tmp_path)
    HybridImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    hybrid("curate", tmp_path, digits / "test" / "30.png", "--output", tmp_path / "out")
    header = "finding,group,rank,id,source,value,detail\n"
    assert (tmp_path / "out" / "findings.csv").read_text() == header


def test_without_a_likelihood(hybrid, make_model, digits, tmp_path):
    model = make_model(encoder_attention="bidirectional", generative_weight=0.0)
    model.save_pretrained(tmp_path)
    HybridImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    hybrid("curate", tmp_path, digits, "--output", tmp_path / "out")
    found = read(tmp_path / "out")
    assert len(found["strangest"]) == 24 and not {"plainest", "busiest"} & found.keys()
    assert "Left out: the checkpoint has no likelihood." in (tmp_path / "out" / "index.html").read_text()


def test_rows_of_parquet_files_and_few_images(hybrid, checkpoint, digits, tmp_path):
    content = (digits / "test" / "30.png").read_bytes()
    for name, rows in (("one", [content]), ("two", [content, None])):
        parquet.write_table(pyarrow.table({"image": rows}), tmp_path / f"{name}.parquet")
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    hybrid("curate", checkpoint, one, two, "--output", tmp_path / "out")
    found = read(tmp_path / "out")
    assert [row["id"] for row in found["exact_leak"]] == [f"{one}#0", f"{two}#0"]
    assert [row["id"] for row in found["broken"]] == [f"{two}#1"] and "strangest" not in found
    refused = hybrid("curate", checkpoint, two, "--output", tmp_path / "no", "--max-unreadable-share", 0.1, code=1)
    assert "1 of 2 images cannot be read" in refused.stderr and not (tmp_path / "no").exists()


@pytest.mark.parametrize("num", [1, 2, 50])
def test_nearest_is_a_sort_of_all_cosines(num):
    vectors = torch.nn.functional.normalize(torch.randn(num, 7))
    cosines, numbers = nearest(vectors, 3, Progress(None))
    assert cosines.shape == numbers.shape == (num, min(3, num - 1))
    expected = (vectors @ vectors.T).fill_diagonal_(-2)
    torch.testing.assert_close(cosines, expected.sort(descending=True).values[:, : min(3, num - 1)])
    torch.testing.assert_close(cosines, expected.gather(1, numbers))


def test_look_alikes():
    angles = torch.tensor([0.0, 1.0, 2.5])
    plane = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=1)
    triples = torch.zeros(6, 12)
    triples[:3, :2], triples[3:, 2:4] = plane, 3 * plane
    pairs, cosines = look_alikes(torch.cat([triples, torch.randn(6, 12)]), Progress(None))
    assert [group for group in joined(pairs, cosines, 12)[0] if len(group) > 2] == [[0, 1, 2], [3, 4, 5]]
    assert cosines[(pairs == (0, 1)).all(axis=1)] == pytest.approx(np.cos(np.deg2rad(1)), abs=1e-6)
    assert len(look_alikes(triples[:1], Progress(None))[0]) == 0


def test_near_duplicates_are_shifted_and_lit_otherwise_but_not_flat():
    random = np.random.default_rng(0)
    large = random.integers(0, 256, (40, 40, 3))
    one, shifted, too_far = (large[y : y + 32, x : x + 32] for y, x in ((0, 0), (3, 4), (8, 0)))
    dark, other, flat = one * 0.5 + 9, random.integers(0, 256, one.shape), np.full(one.shape, 9)
    pictures = np.stack([one, shifted, too_far, dark, other, flat, flat]).astype("uint8")
    pairs, correlations, _ = near_duplicates(pictures, 0.5, torch.device("cpu"), Progress(None))
    found = {tuple(pair): value for pair, value in zip(pairs.tolist(), correlations, strict=True)}
    assert {(0, 1), (0, 3), (1, 3)} <= found.keys() and found[0, 1] == pytest.approx(1, abs=1e-5)
    assert found.keys() <= {(0, 1), (0, 3), (1, 3), (1, 2)}  # the second is five rows from the third, and no column
    assert len(near_duplicates(pictures[:1], 0.5, torch.device("cpu"), Progress(None))[0]) == 0


def test_varied_pictures_may_differ_more():
    random = np.random.default_rng(0)
    varied = random.integers(0, 256, (20, 32, 32, 3), dtype="uint8")
    alike = (varied * 0.1 + varied[:1] * 0.9).astype("uint8")
    for pictures, expected in ((varied, 0.95), (alike, 0.99), (varied[:1], 0.99)):
        assert near_duplicates(pictures, None, torch.device("cpu"), Progress(None))[2] == expected


def test_joined():
    families, best = joined(np.array([[0, 2], [2, 4]]), np.array([0.5, 0.75]), 5)
    assert families == [[0, 2, 4], [1], [3]] and best == [0.5, 0, 0.75, 0, 0.75]


def test_sizes_are_odd_among_others():
    def of(width, height):
        Image.new("RGB", (width, height)).save(stream := BytesIO(), "PNG")
        return look(Item("1.png", b""), Image.open(stream))

    assert oddities([of(8, 8), of(8, 8), of(8, 9)]) == {2: "8 x 9, most are 8 x 8"}
    found = oddities([of(10 + i, 12) for i in range(9)] + [of(90, 90), of(12, 60)])
    assert found == {
        9: "90 x 90, while half have 180 pixels or more",
        10: "12 x 60, one side more than 3 times the other",
    }
