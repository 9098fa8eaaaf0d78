"""Wherever images come from: the right bytes, the right label, the right split, and a plain word on what is wrong."""

import io
import logging
import os
import sys
import tarfile
from itertools import chain, islice
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from model_fixtures import write_png_header
from PIL import Image
from sklearn.datasets import load_digits

from modeling_hybrid import HybridConfig, HybridImageProcessor
from training.config import DataConfig
from training.data.batches import lanes_of, training_batches
from training.data.images import ImageStream, LevelsDataset, ToLevels
from training.data.splits import load_splits


GREY = HybridConfig.from_size("tiny", num_levels=256)
RGB = HybridConfig.from_size("tiny", num_channels=3, num_levels=256)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def flat_image(value: int, mode: str = "L", size: int = 8) -> Image.Image:
    return Image.new("L", (size, size), value).convert(mode)


def write_folder(folder: Path, classes=("ant", "bee"), num_images: int = 20) -> str:
    """Class folders; image i of class c is flat, of value 100 c + i, so that its pixels tell its label."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(num_images):
            flat_image(100 * c + i).save(folder / name / f"{i:03}.png")
    return str(folder)


def write_parquet(path: Path, values, **columns) -> str:
    """Flat images of these values, beside other columns."""
    table = datasets.Dataset.from_dict({"image": [flat_image(value) for value in values], **columns})
    table.cast_column("image", datasets.Image()).to_parquet(path)
    return str(path)


def load(model=GREY, max_images=30, **config):
    return load_splits(DataConfig(**config), model, max_images)


def values_of(split) -> np.ndarray:
    """The value of each flat image."""
    levels = split.all_levels()
    assert (levels == levels[:, :, :1, :1]).all()
    return levels[:, 0, 0, 0].numpy()


# Sources.


def test_digits_are_exact_stratified_and_labelled():
    splits = load(HybridConfig.from_size("tiny"), dataset="digits")
    parts = (splits.reference, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1293, 144, 360]
    bunch = load_digits()
    label_of = {
        image.astype(np.uint8).tobytes(): label for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    seen = set()
    for part in parts:
        for levels, label in zip(part.all_levels(), part.labels(), strict=True):
            assert label_of[levels.numpy().tobytes()] == label
            seen.add(levels.numpy().tobytes())
        assert np.bincount(part.labels()).min() >= 0.08 * len(part)
    assert seen == set(label_of)
    assert splits.class_names == [str(i) for i in range(10)]


@pytest.mark.parametrize("streaming", [False, True])
def test_image_folder_with_classes(tmp_path, streaming):
    write_folder(tmp_path / "photos" / "train")
    write_folder(tmp_path / "photos" / "test", num_images=5)
    # A stream comes class by class: its first 15 images are validation, the next 15 are of both classes.
    arguments = {"data_dir": str(tmp_path / "photos")}
    splits = load(dataset="imagefolder", arguments=arguments, streaming=streaming, max_images=15)
    assert splits.class_names == ["ant", "bee"]
    for part in (splits.reference, splits.validation, splits.test):
        np.testing.assert_array_equal(values_of(part) // 100, part.labels())
    assert len(splits.test) == 10
    overlap = set(values_of(splits.reference)) & set(values_of(splits.validation))
    assert not overlap


def test_image_folder_without_labels_and_without_test_split(tmp_path, caplog):
    splits = load(dataset=write_folder(tmp_path / "photos", classes=("",)))
    assert splits.class_names is None and splits.reference.labels() is None
    assert sorted([*values_of(splits.reference), *values_of(splits.validation)]) == list(range(20))
    assert splits.test.table is splits.validation.table
    assert "No test split" in caplog.text and "label" in caplog.text


def test_nested_folders_are_read_to_the_bottom(tmp_path):
    write_folder(tmp_path / "insects" / "flying")
    write_folder(tmp_path / "insects" / "running", classes=("cat",))
    splits = load(dataset="imagefolder", arguments={"data_dir": str(tmp_path)})
    assert len(splits.reference) + len(splits.validation) == 60
    assert splits.class_names == ["ant", "bee", "cat"]


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_mean_the_same_class_in_every_split(tmp_path, streaming):
    """Strings in an order of their own in every split, and a test split that lacks a class."""
    names = {0: "bee", 1: "ant", 2: "cat"}
    values = {"train": [200, 0, 100] * 10, "test": [200, 100] * 5, "val": [100, 200, 0]}
    files = {
        split: write_parquet(tmp_path / f"{split}.parquet", v, kind=[names[value // 100] for value in v])
        for split, v in values.items()
    }
    splits = load(
        dataset="parquet",
        arguments={"data_files": files},
        label_column="kind",
        validation_split="val",
        streaming=streaming,
    )
    assert splits.class_names == ["ant", "bee", "cat"]
    for part, split in ((splits.reference, "train"), (splits.validation, "val"), (splits.test, "test")):
        assert sorted(values_of(part)) == sorted(values[split])
        assert [splits.class_names[label] for label in part.labels()] == [names[v // 100] for v in values_of(part)]


def test_groups_are_kept_together(tmp_path):
    values = list(range(60))
    file = write_parquet(tmp_path / "a.parquet", values, family=[f"f{value % 7}" for value in values])
    splits = load(
        dataset="parquet",
        arguments={"data_files": file},
        group_column="family",
        label_column=None,
        validation_fraction=0.3,
    )
    train, validation = values_of(splits.reference), values_of(splits.validation)
    assert sorted([*train, *validation]) == values
    assert not set(train % 7) & set(validation % 7)


def test_slices_of_a_split(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", range(20))
    splits = load(
        dataset="parquet", arguments={"data_files": file}, train_split="train[:50%]", validation_split="train[50%:]"
    )
    assert values_of(splits.reference).tolist() == list(range(10))
    assert values_of(splits.validation).tolist() == list(range(10, 20))


@pytest.mark.parametrize(("mode", "expected"), [("RGB", 100), ("P", 100), ("LA", 100), ("RGBA", 100), ("CMYK", 100)])
@pytest.mark.parametrize("model", [GREY, RGB], ids=["grey", "rgb"])
def test_modes_are_converted(tmp_path, mode, expected, model):
    for i in range(4):
        flat_image(100, mode, size=16).save(tmp_path / f"{i}.{'tiff' if mode == 'CMYK' else 'png'}")
    splits = load(model, dataset="imagefolder", arguments={"data_dir": str(tmp_path)}, validation_fraction=0.5)
    levels = splits.reference.all_levels()
    assert levels.shape == (2, model.num_channels, 8, 8)
    assert (levels == expected).all()


def test_upright_as_a_viewer_shows_it(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    for i in range(4):
        image.save(tmp_path / f"{i}.png", exif=exif)
    levels = load(dataset="imagefolder", arguments={"data_dir": str(tmp_path)}).reference.all_levels()
    np.testing.assert_array_equal(levels[0, 0], np.rot90(np.asarray(image), -1))


def test_images_are_converted_once(tmp_path, monkeypatch):
    arguments = {"data_dir": write_folder(tmp_path / "photos")}
    first = load(dataset="imagefolder", arguments=arguments)
    monkeypatch.setattr(ToLevels, "convert", None)
    second = load(dataset="imagefolder", arguments=arguments)
    assert torch.equal(first.reference.all_levels(), second.reference.all_levels())


# Labels that are of no use are dropped with a word; training never needs them.


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["ant", None] * 10, "no label"),
        (["ant"] * 20, "one class"),
    ],
)
def test_useless_labels_are_dropped(tmp_path, caplog, labels, said):
    file = write_parquet(tmp_path / "a.parquet", range(20), label=labels)
    splits = load(dataset="parquet", arguments={"data_files": file})
    assert splits.class_names is None
    assert {part.labels() for part in (splits.reference, splits.validation, splits.test)} == {None}
    assert said in caplog.text and "probes" in caplog.text


def test_withheld_test_labels_are_no_class(tmp_path, caplog):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    for split, labels in (("train", [0, 1] * 10), ("test", [-1] * 20)):
        rows = {"image": [flat_image(value) for value in range(20)], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    splits = load(dataset="parquet", arguments={"data_files": files})
    assert splits.class_names is None and "no label" in caplog.text


def test_a_class_with_a_single_image_does_not_stop_the_split(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", range(20), label=["ant"] * 19 + ["bee"])
    splits = load(dataset="parquet", arguments={"data_files": file})
    assert len(splits.reference) == 18 and len(splits.validation) == 2


# Broken files.


def break_files(folder: Path) -> list[str]:
    """Adds seven files that are no readable images of 8 bits; returns their names."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    for name, form in (("cut.jpg", "JPEG"), ("cut.png", "PNG")):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, form)
        (folder / name).write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    (folder / "text.png").write_text("I am a letter, not a picture.")
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(noise.astype(np.uint16) * 200).save(folder / "sixteen.png")
    Image.fromarray(noise.astype(np.int32)).save(folder / "thirtytwo.tiff")
    Image.fromarray(noise.astype(np.float32)).save(folder / "float.tiff")
    return ["cut.jpg", "cut.png", "text.png", "empty.png", "sixteen.png", "thirtytwo.tiff", "float.tiff"]


def test_broken_files_are_counted_named_and_skipped(tmp_path, caplog):
    arguments = {"data_dir": write_folder(tmp_path / "photos")}
    broken = break_files(tmp_path / "photos" / "bee")
    splits = load(dataset="imagefolder", arguments=arguments, max_unreadable_share=0.2)
    assert "7 of 47 images of the train split cannot be read" in caplog.text and "BytesIO" not in caplog.text
    for name in broken:
        assert name in caplog.text
    assert len(splits.reference) + len(splits.validation) == 40
    np.testing.assert_array_equal(values_of(splits.reference) // 100, splits.reference.labels())


def test_a_file_of_too_many_pixels_is_skipped_before_it_is_decoded(tmp_path, caplog):
    arguments = {"data_dir": write_folder(tmp_path / "photos")}
    write_png_header(tmp_path / "photos" / "bee" / "huge.png", 12000, 12000)
    splits = load(dataset="imagefolder", arguments=arguments, max_unreadable_share=0.2)
    assert "huge.png: The image has 12000 x 12000 pixels, more than 67,108,864" in caplog.text
    assert len(splits.reference) + len(splits.validation) == 40


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
@pytest.mark.parametrize("streaming", [False, True])
def test_names_that_are_no_utf8_are_counted_named_and_skipped(tmp_path, caplog, streaming):
    """One such name would make Arrow refuse the whole folder; others that look odd are read."""
    folder = write_folder(tmp_path / "photos")
    for name in (b"f\xfcr.png", b"[1]*?.png"):
        flat_image(7).save(os.path.join(folder, "ant", os.fsdecode(name)))
    arguments = {"dataset": "imagefolder", "arguments": {"data_dir": str(folder)}, "streaming": streaming}
    splits = load(**arguments, max_images=20, max_unreadable_share=0.1)
    assert "1 of 42 files cannot be read" in caplog.text and r"ant/f\xfcr.png: its name is no UTF-8" in caplog.text
    if not streaming:
        assert len(splits.reference) + len(splits.validation) == 41 and splits.class_names == ["ant", "bee"]
    with pytest.raises(ValueError, match=r"f\\xfcr\.png.*(?s:.)*max_unreadable_share=0\.01"):
        load(**arguments, max_images=20, max_unreadable_share=0.01)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("fields", [("bytes",), ("bytes", "path"), ("path", "bytes", "width")], ids=str)
def test_structs_of_bytes_are_images(tmp_path, caplog, fields, streaming):
    """As tools without `datasets` write them."""
    stream = io.BytesIO()
    flat_image(7).save(stream, "PNG")
    row = {"bytes": stream.getvalue(), "path": "torn.png" if len(fields) == 2 else None, "width": 8}
    rows = [{field: row[field] for field in fields}] * 20
    rows[3] = rows[3] | {"bytes": b"?"}
    kinds = {"bytes": pa.binary(), "path": pa.string(), "width": pa.int64()}
    schema = pa.schema([("image", pa.struct([(field, kinds[field]) for field in fields]))])
    pq.write_table(pa.table({"image": rows}, schema=schema), tmp_path / "a.parquet")
    arguments = {"data_files": str(tmp_path / "a.parquet")}
    splits = load(dataset="parquet", arguments=arguments, streaming=streaming, max_unreadable_share=0.3, max_images=5)
    assert (splits.validation.all_levels() == 7).all()
    name = "torn.png" if len(fields) == 2 else "row 3"
    assert f"{name}: it is no image file of a kind that is known" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_too_many_broken_files_are_refused(tmp_path, streaming):
    arguments = {"data_dir": write_folder(tmp_path / "photos")}
    break_files(tmp_path / "photos" / "ant")
    with pytest.raises(ValueError, match=r"(?s)7 of .* cannot be read.*empty\.png.*max_unreadable_share=0\.1"):
        load(
            dataset="imagefolder",
            arguments=arguments,
            max_unreadable_share=0.1,
            streaming=streaming,
            max_images=30,
        )


def test_broken_rows_of_parquet_are_named_by_number(tmp_path, caplog):
    stream = io.BytesIO()
    flat_image(7).save(stream, "PNG")
    rows = [{"bytes": stream.getvalue(), "path": None}] * 20
    rows[13] = {"bytes": stream.getvalue()[:40], "path": None}
    rows[15] = None
    features = datasets.Features({"image": datasets.Image(decode=False)})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "a.parquet")
    arguments = {"data_files": str(tmp_path / "a.parquet")}
    splits = load(dataset="parquet", arguments=arguments, max_unreadable_share=0.1)
    assert "row 13" in caplog.text and "row 15: the row has no image" in caplog.text
    assert len(splits.reference) + len(splits.validation) == 18


def test_broken_images_of_a_stream_are_skipped_or_refused(tmp_path, caplog):
    stream = io.BytesIO()
    flat_image(7).save(stream, "PNG")
    good, broken = {"bytes": stream.getvalue(), "path": None}, {"bytes": b"?", "path": "torn.png"}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [good] * 20 + ([good] * 9 + [broken]) * 20
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "a.parquet")
    arguments = {"data_files": str(tmp_path / "a.parquet")}

    def batches(share: float) -> list[torch.Tensor]:
        config = {"arguments": arguments, "streaming": True, "max_unreadable_share": share, "max_images": 10}
        loader = training_batches(load(dataset="parquet", **config).train, batch_size=60, seed=0)
        return [levels for levels, _, _ in islice(loader, 4)]

    for levels in batches(share=0.2):
        assert levels.shape == (60, 1, 8, 8) and (levels == 7).all()
    assert "torn.png" in caplog.text
    with pytest.raises(ValueError, match=r"of the stream cannot be read.*max_unreadable_share=0\.05"):
        batches(share=0.05)


# What cannot work is refused with what there is instead.


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_column": "img"}, "data.image_column='img' is not a column of the dataset, which has: image, label"),
        ({"group_column": "family"}, "data.group_column='family' is not a column"),
        ({"train_split": "training"}, "data.train_split='training' is not a split of .*, which has: train"),
        ({"validation_split": "dev"}, "data.validation_split='dev' is not a split of .*, which has: train"),
        ({"arguments": {"data_dri": "x"}}, "cannot be loaded: .*data_dri"),
        ({"image_column": "label", "label_column": None}, "data.image_column='label' holds ClassLabel"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, streaming, changed, said):
    arguments = {"data_dir": write_folder(tmp_path / "photos")}
    with pytest.raises(ValueError, match=said):
        load(**{"dataset": "imagefolder", "arguments": arguments, "streaming": streaming, **changed})


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_sources(tmp_path, streaming):
    (tmp_path / "nothing").mkdir()
    for folder in ("nothing", "nowhere"):
        with pytest.raises(ValueError, match=f"{folder}.*doesn't contain any data files"):
            load(dataset="imagefolder", arguments={"data_dir": str(tmp_path / folder)}, streaming=streaming)
    rows = datasets.Dataset.from_dict({"image": []}, features=datasets.Features({"image": datasets.Image()}))
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"holds no image|no data"):
        load(dataset="parquet", arguments={"data_files": str(tmp_path / "a.parquet")}, streaming=streaming)


def test_a_dataset_of_save_to_disk_is_refused(tmp_path):
    datasets.Dataset.from_dict({"image": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="save_to_disk"):
        load(dataset=str(tmp_path / "saved"))


def test_columns_of_another_kind(tmp_path):
    datasets.Dataset.from_dict({"image": [[[1]]] * 4}).to_parquet(tmp_path / "arrays.parquet")
    with pytest.raises(ValueError, match=r"data\.image_column='image' holds List"):
        load(dataset="parquet", arguments={"data_files": str(tmp_path / "arrays.parquet")})
    file = write_parquet(tmp_path / "tags.parquet", range(4), label=[["a", "b"]] * 4)
    with pytest.raises(ValueError, match=r"data\.label_column='label' holds List"):
        load(dataset="parquet", arguments={"data_files": file}, validation_fraction=0.5)


def test_too_few_images_to_split_or_to_stream(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", [1])
    with pytest.raises(ValueError, match=r"1 images .* cannot be split"):
        load(dataset="parquet", arguments={"data_files": file})
    with pytest.raises(ValueError, match="ends with its first 1 images"):
        load(dataset="parquet", arguments={"data_files": file}, streaming=True)


# Batches.


@pytest.fixture
def source(tmp_path):
    """Builds a training source of 30 flat images of values 0..29, held or streamed."""
    arguments = {"data_files": write_parquet(tmp_path / "a.parquet", [*range(30), *range(30, 34)])}

    def build(streaming: bool):
        config = {"dataset": "parquet", "arguments": arguments, "shuffle_buffer": 8, "streaming": streaming}
        splits = load(**config, max_images=4, validation_fraction=4 / 34)
        return splits.train

    return build


def draw(source, num_batches: int, **arguments) -> tuple[list[list[int]], list]:
    drawn = list(islice(training_batches(source, **{"batch_size": 4, "seed": 0, **arguments}), num_batches))
    return [levels[:, 0, 0, 0].tolist() for levels, _, _ in drawn], [position for _, _, position in drawn]


@pytest.mark.parametrize("streaming", [False, True])
def test_an_epoch_visits_each_image_once_in_a_new_order(source, streaming):
    batches, _ = draw(source(streaming), 14)
    one, other = list(chain(*batches[:7])), list(chain(*batches[7:]))
    assert len(set(one)) == len(set(other)) == 28
    assert one != other and one != sorted(one)
    assert draw(source(streaming), 14)[0] == batches
    assert draw(source(streaming), 14, seed=1)[0] != batches


def test_each_image_comes_with_its_index(source):
    """The same one in every epoch; a stream has none to give."""
    train = source(False)
    for levels, sample_ids, _ in islice(training_batches(train, batch_size=4, seed=0), 14):
        assert torch.equal(train.__getitems__(sample_ids.tolist()), levels)
    _, sample_ids, _ = next(training_batches(source(True), batch_size=4, seed=0, num_workers=1))
    assert sample_ids is None


@pytest.mark.parametrize("streaming", [False, True])
def test_processes_share_the_images_out(source, streaming):
    parts = [draw(source(streaming), 3, process_index=i, num_processes=2)[0] for i in range(2)]
    images = list(chain(*parts[0], *parts[1]))
    assert len(images) == len(set(images)) == 24


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_go_on_from_any_position(source, streaming, num_workers):
    train = source(streaming)
    for arguments in ({}, {"process_index": 1, "num_processes": 2}):
        batches, positions = draw(train, 16, **arguments)
        for i in (0, 2, 6, 7, 9):
            rest, _ = draw(train, 15 - i, start=positions[i], num_workers=num_workers, **arguments)
            assert rest == batches[i + 1 :]


@pytest.mark.parametrize("streaming", [False, True])
def test_fewer_images_than_a_batch(source, streaming):
    with pytest.raises(ValueError, match=r"batch_size=20 on each of 2 process"):
        draw(source(streaming), 1, batch_size=20, num_processes=2)


def shards(folder: Path, kind: str, sizes: list[int]) -> str:
    """A pattern of the files that hold flat images of values 0, 1, 2, ..., so many each."""
    first = 0
    for i, size in enumerate(sizes):
        levels = range(first, first + size)
        first += size
        if kind == "parquet":
            write_parquet(folder / f"{i}.parquet", levels)
            continue
        with tarfile.open(folder / f"{i}.webdataset", "w") as tar:
            for level in levels:
                stream = io.BytesIO()
                flat_image(level).save(stream, "PNG")
                member = tarfile.TarInfo(f"{level:04}.png")
                member.size = stream.tell()
                tar.addfile(member, io.BytesIO(stream.getvalue()))
    return str(folder / f"*.{kind}")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_stream_of_shards_is_read_once_whoever_reads_it(tmp_path, kind):
    """An epoch of four shards: the same global batches by 1, 2 and 4 processes, with and without workers."""
    files = shards(tmp_path, kind, [12, 16, 16, 16])
    column = {"image_column": "png"} if kind == "webdataset" else {}
    config = {"arguments": {"data_files": files}, "streaming": True, "shuffle_buffer": 16, "max_images": 4, **column}
    train = load(dataset=kind, **config).train
    lanes = lanes_of(train, batch_size=8, num_processes=1)
    assert (lanes.num, lanes.block_size) == (4, 4)
    opened = []

    def images(self, shard, first, read=ImageStream.images):
        opened.append(shard)
        return read(self, shard, first)

    with mock.patch.object(ImageStream, "images", images):
        whole, _ = draw(train, 4, batch_size=8)
        assert sorted(opened) == [0, 1, 2, 3]
        opened.clear()
        draw(train, 4, batch_size=4, num_processes=2, process_index=1, lanes=lanes)
        assert len(opened) == len(set(opened)) == 2
    assert sorted(chain(*whole)) == sorted(set(chain(*whole))) and set(chain(*whole)) <= set(range(4, 60))
    assert len({level // 16 for level in whole[0]}) > 2  # of several shards at a time
    for num_processes, num_workers in ((1, 3), (2, 0), (2, 2), (4, 1)):
        of_each = {"batch_size": 8 // num_processes, "num_processes": num_processes, "num_workers": num_workers}
        parts = [draw(train, 4, process_index=i, lanes=lanes, **of_each)[0] for i in range(num_processes)]
        assert [list(chain(*of_batch)) for of_batch in zip(*parts, strict=True)] == whole


def test_a_stream_goes_on_within_a_shard_by_another_number_of_processes(tmp_path):
    """Nothing before the shard, and nothing of other lanes, is read again; the next epoch is entered as well."""
    files = shards(tmp_path, "parquet", [40, 40])
    config = {"arguments": {"data_files": files}, "streaming": True, "shuffle_buffer": 12, "max_images": 2}
    train = load(dataset="parquet", **config).train
    lanes = lanes_of(train, batch_size=4, num_processes=2)
    assert lanes.num == 2
    whole = [draw(train, 25, process_index=i, num_processes=2, lanes=lanes) for i in range(2)]
    batches = [list(chain(*pair)) for pair in zip(*(found for found, _ in whole), strict=True)]
    for i in (0, 3, 8, 9, 17):
        (first,), (second,) = (positions[i] for _, positions in whole)
        assert draw(train, 24 - i, batch_size=8, lanes=lanes, start=[first, second])[0] == batches[i + 1 :]


def test_rows_held_out_of_a_stream_are_never_trained_on(tmp_path):
    """Also where they are more than a shard."""
    files = shards(tmp_path, "parquet", [6, 6, 20])
    splits = load(dataset="parquet", arguments={"data_files": files}, streaming=True, max_images=8)
    assert splits.validation.all_levels()[:, 0, 0, 0].tolist() == list(range(8))
    assert splits.train.begin == (1, 2)
    drawn = set(chain(*draw(splits.train, 60, batch_size=2)[0]))
    assert drawn == set(range(8, 32))


def test_loading_leaves_the_random_numbers_alone(source):
    """The augmentation draws from torch's default generator: an iterator that did as well would shift every draw."""
    state = torch.get_rng_state()
    draw(source(False), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_converting_fits_the_image_processor():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (11, 9, 3), dtype=np.uint8))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    processor = HybridImageProcessor.from_config(RGB)
    levels, error = ToLevels(processor).convert({"bytes": stream.getvalue(), "path": None}, "it")
    assert error is None
    expected = ((processor(image, return_tensors="pt").pixel_values[0] + 1) * 127.5).round()
    np.testing.assert_array_equal(np.frombuffer(levels, np.uint8).reshape(3, 8, 8), expected.numpy())


def test_progress_is_shown_for_many_images_only(tmp_path, capfd, caplog):
    caplog.set_level(logging.WARNING, "datasets")
    load(dataset="parquet", arguments={"data_files": write_parquet(tmp_path / "a.parquet", range(20))})
    assert "Converting images" not in capfd.readouterr().err


def test_a_part_of_a_sorted_split_holds_every_class():
    table = datasets.Dataset.from_dict(
        {"levels": [bytes([label]) for label in range(5) for _ in range(20)], "label": np.repeat(range(5), 20).tolist()}
    )
    split = LevelsDataset(table, (1, 1, 1))
    assert sorted(split.labels(10)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert split.all_levels(10).flatten().tolist() == split.labels(10).tolist()
    assert len(split.all_levels()) == len(split.all_levels(1000)) == 100
