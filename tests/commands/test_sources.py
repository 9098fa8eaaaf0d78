"""Where images come from, and what happens to broken ones."""

import os
from io import BytesIO

import pyarrow
import pyarrow.parquet as parquet
import pytest
from model_fixtures import write_png_header
from PIL import Image

from modeling_hybrid.commands.options import ImageOptions, printable
from modeling_hybrid.commands.sources import Sources


def names(*sources, **options):
    return [item.name for item in Sources(ImageOptions([str(source) for source in sources], **options))]


def test_folders_globs_and_files(digits):
    everything = [str(path) for path in sorted(digits.rglob("*.png"))]
    assert names(digits) == everything
    assert names(digits / "t*" / "*.png") == everything
    assert names(everything[3], everything[1]) == [everything[3], everything[1]]
    assert names(digits / "test", digits / "train", limit=12) == [*everything[:10], *everything[10:12]]
    assert Sources(ImageOptions([str(digits)])).count() == 40
    assert Sources(ImageOptions([str(digits)], limit=7)).count() == 7


def test_other_files_of_a_folder_are_left_out(digits, tmp_path):
    (tmp_path / "one.PNG").write_bytes((digits / "test" / "30.png").read_bytes())
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    sources = Sources(ImageOptions([str(tmp_path)]))
    assert [item.name for item in sources] == [str(tmp_path / "one.PNG")]
    assert sources.ignored == [str(tmp_path / "notes.txt")]


def test_parquet_of_bytes_and_of_paths(digits, tmp_path):
    paths = sorted((digits / "test").glob("*.png"))
    values = [{"bytes": paths[0].read_bytes(), "path": None}, {"bytes": None, "path": str(paths[1])}, None]
    parquet.write_table(pyarrow.table({"picture": values}), tmp_path / "images.parquet")
    sources = Sources(ImageOptions([str(tmp_path / "images.parquet")], image_column="picture"))
    items = list(sources)
    assert [item.name.rsplit("#")[1] for item in items] == ["0", "1", "2"] and sources.count() == 3
    for item, path in zip(items, paths[:2], strict=False):
        with item.open() as image, Image.open(path) as expected:
            assert image.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="no image"):
        items[2].open()
    with pytest.raises(ValueError, match="no column 'image'; --image-column is one of: picture"):
        names(tmp_path / "images.parquet")
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(ValueError, match="no Parquet file"):
        names(tmp_path / "broken.parquet")


def test_a_folder_of_parquet_files(digits, tmp_path):
    values = [{"bytes": path.read_bytes(), "path": None} for path in sorted((digits / "test").glob("*.png"))]
    for number in range(2):
        parquet.write_table(pyarrow.table({"image": values[number::2]}), tmp_path / f"part-{number}.parquet")
    (tmp_path / "notes.txt").write_text("no image")
    assert names(tmp_path) == names(tmp_path / "part-0.parquet", tmp_path / "part-1.parquet")
    (tmp_path / "one.png").write_bytes(values[0]["bytes"])
    sources = Sources(ImageOptions([str(tmp_path)]))
    assert [item.name for item in sources] == [str(tmp_path / "one.png")] and len(sources.ignored) == 3


def test_data_sets_are_streamed(monkeypatch, digits):
    """Through `datasets` itself, but for the Hub."""
    import datasets

    paths = [str(path) for path in sorted((digits / "test").glob("*.png"))]
    rows = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image()).to_iterable_dataset()
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *name, **options: asked.append((name, options)) or rows)
    items = list(Sources(ImageOptions(["someone/digits", "someone/digits:train"], split="test")))
    assert asked == [(("someone/digits",), {"split": split, "streaming": True}) for split in ("test", "train")]
    assert items[3].name == "someone/digits/test#3" and items[13].name == "someone/digits/train#3"
    assert [item.source for item in items] == [0] * 10 + [1] * 10
    with items[3].open() as image, Image.open(paths[3]) as expected:
        assert image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("source", ["nowhere", "no/where/at/all", "nothing.png", "*.nothing", "../"])
def test_sources_that_are_not_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises((ValueError, OSError), match=r"no file or folder|No file is matched|holds no image"):
        names(source)


def test_names_that_cannot_be_printed(hybrid, checkpoint, digits, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\x1b[31m.png"
    with open(odd, "wb") as file:
        file.write((digits / "test" / "30.png").read_bytes())
    assert names(tmp_path) == [f"{tmp_path}/\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m.png"]
    assert printable("é 数\t\x07") == "é 数\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    for arguments in (["-"], [tmp_path]):
        assert "[31m.png" in hybrid("score", checkpoint, *arguments, stdin=odd + b"\n").stdout


def test_broken_images_are_named_and_capped(hybrid, checkpoint, digits, tmp_path):
    whole = (digits / "test" / "30.png").read_bytes()
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(whole)
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    write_png_header(tmp_path / "huge.png", 2**15, 2**15)
    refused = hybrid("score", checkpoint, tmp_path, code=1)
    for name in ("cut", "empty", "program", "huge"):
        assert f"cannot be read: {tmp_path / name}.png" in refused.stderr
    assert "4 of 10 images cannot be read, more than --max-unreadable-share 0.01" in refused.stderr
    allowed = hybrid("score", checkpoint, tmp_path, "--max-unreadable-share", 0.5)
    assert len(allowed.stdout.splitlines()) == 7 and "4 of 10" in allowed.stderr
    only = hybrid("score", checkpoint, tmp_path / "cut.png", "--max-unreadable-share", 1, code=1)
    assert "1 of 1" in only.stderr


def test_errors_name_no_object_of_python(hybrid, checkpoint, digits, tmp_path):
    whole = (digits / "test" / "30.png").read_bytes()
    rows = [whole, b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", whole[:60]]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "images.parquet")
    told = hybrid("score", checkpoint, tmp_path / "images.parquet", "--max-unreadable-share", 1).stderr
    assert told.count("cannot be read: ") == 4 and told.count("no image of a known format (AVIF, BMP") >= 3
    assert "BytesIO" not in told and " object at " not in told


def test_a_limit_takes_of_every_source_in_turn(digits):
    options = ImageOptions([str(digits / "train"), str(digits / "test" / "30.png"), str(digits / "test")], limit=6)
    in_turn = Sources(options, in_turn=True)
    assert [item.source for item in in_turn] == [0, 1, 2, 0, 2, 0] and in_turn.count() == 6
    options.limit = None
    everything = [item.name for item in Sources(options, in_turn=True)]
    assert sorted(everything) == sorted(names(*options.sources)) and everything[-1].endswith("train/29.png")


def test_bytes_of_many_formats(hybrid, checkpoint, tmp_path):
    image = Image.new("RGB", (20, 12), "orange")
    rows = []
    for kind in ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"):
        image.save(stream := BytesIO(), kind)
        rows.append(stream.getvalue())
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "images.parquet")
    assert len(hybrid("score", checkpoint, tmp_path / "images.parquet").stdout.splitlines()) == 7
