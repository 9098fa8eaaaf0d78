"""Images -> pixel_values -> codes -> images: exact at native size, any size, mode and container on the way in."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from model_fixtures import write_png_header
from PIL import Image

from modeling_hybrid import HybridConfig, HybridImageProcessor, HybridImageProcessorTorchvision
from modeling_hybrid.patch_codes import pixels_to_codes


GREY = {"image_size": 8, "num_channels": 1, "patch_size": 2}
RGB = {"image_size": 8, "num_channels": 3, "patch_size": 4}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def processor_of(**fields):
    config = HybridConfig(**fields)
    return HybridImageProcessor.from_config(config), config


@pytest.mark.parametrize("fields", [GREY, RGB], ids=["grey", "rgb"])
def test_round_trip_is_lossless_at_native_size(fields):
    processor, config = processor_of(**fields)
    every_byte = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    arrays = list(every_byte if config.num_channels == 1 else np.stack([every_byte, 255 - every_byte, every_byte], -1))
    images = [Image.fromarray(array) for array in arrays]
    pixel_values = processor(images, return_tensors="pt").pixel_values
    assert pixel_values.shape == (4, config.num_channels, 8, 8)
    assert pixel_values.dtype is torch.float32
    assert (pixel_values.min(), pixel_values.max()) == (-1, 1)
    codes = pixels_to_codes(pixel_values, config)
    for back in (processor.codes_to_images(codes), processor.pixels_to_images(pixel_values)):
        assert [image.mode for image in back] == ["L" if config.num_channels == 1 else "RGB"] * 4
        for image, array in zip(back, arrays, strict=True):
            assert np.array_equal(np.array(image), array)


@pytest.mark.parametrize("num_levels", [2, 3, 17])
def test_fewer_levels_are_lossless_on_their_grid(num_levels):
    processor, config = processor_of(**GREY, num_levels=num_levels)
    codes = torch.arange(64).view(1, 16, 4) % num_levels
    images = processor.codes_to_images(codes)
    assert len(np.unique(np.array(images[0]))) == num_levels
    pixel_values = processor(images, return_tensors="pt").pixel_values
    assert torch.equal(pixels_to_codes(pixel_values, config), codes)
    assert np.array_equal(np.array(processor.pixels_to_images(pixel_values)[0]), np.array(images[0]))


def test_digits_keep_their_seventeen_levels():
    """Values 0..16 scaled to bytes by any rounding come back as 0..16."""
    processor, config = processor_of(**GREY, num_levels=17)
    digits = np.random.default_rng(0).integers(0, 17, (8, 8))
    for to_bytes in (np.floor, np.rint):
        image = Image.fromarray(to_bytes(digits * 255 / 16).astype(np.uint8))
        codes = pixels_to_codes(processor(image, return_tensors="pt").pixel_values, config)
        patches = digits.reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
        assert np.array_equal(codes[0].numpy(), patches)


@pytest.mark.parametrize("num_levels", [5, 256])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 50), (64, 31)])
def test_any_size_comes_out_square_and_on_the_grid(size, num_levels):
    processor, _ = processor_of(**RGB, num_levels=num_levels)
    pixel_values = processor(Image.fromarray(noise(*size, 3)), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 8, 8)
    levels = (pixel_values + 1) * (num_levels - 1) / 2
    torch.testing.assert_close(levels, levels.round())
    expected = np.array(Image.fromarray(noise(*size, 3)).resize((8, 8), Image.Resampling.BICUBIC))
    found = np.array(processor.pixels_to_images(pixel_values)[0])
    assert np.abs(found.astype(int) - expected).max() <= (0 if num_levels == 256 else 128 // (num_levels - 1) + 1)


def test_images_of_different_sizes_in_one_batch():
    processor, _ = processor_of(**RGB)
    images = [Image.fromarray(noise(5, 9, 3)), Image.fromarray(noise(8, 8, 3)), Image.fromarray(noise(30, 30))]
    batch = processor(images, return_tensors="pt").pixel_values
    assert batch.shape == (3, 3, 8, 8)
    for row, image in zip(batch, images, strict=True):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], row)


def test_grey_and_rgb_are_converted_as_pillow_does():
    colour, grey = Image.fromarray(noise(8, 8, 3)), Image.fromarray(noise(8, 8))
    to_grey, _ = processor_of(**GREY)
    to_rgb, _ = processor_of(**RGB)
    for image in (colour, np.array(colour), [np.moveaxis(np.array(colour), -1, 0)]):
        found = to_grey.pixels_to_images(to_grey(image, return_tensors="pt").pixel_values)[0]
        assert np.array_equal(np.array(found), np.array(colour.convert("L")))
    for image in (grey, np.array(grey), np.array(grey)[None], np.array(grey)[..., None]):
        found = to_rgb.pixels_to_images(to_rgb(image, return_tensors="pt").pixel_values)[0]
        assert np.array_equal(np.array(found), np.array(grey.convert("RGB")))


@pytest.mark.parametrize("fields", [GREY, RGB], ids=["grey", "rgb"])
def test_containers_and_layouts_agree(fields):
    processor, config = processor_of(**fields)
    last = noise(4, 8, 8, config.num_channels)
    first = np.moveaxis(last, -1, 1)
    expected = processor([Image.fromarray(image.squeeze()) for image in last], return_tensors="pt").pixel_values
    for batch in (last, first, torch.from_numpy(first.copy()), torch.from_numpy(last), list(last), list(first)):
        assert torch.equal(processor(batch, return_tensors="pt").pixel_values, expected)
    assert torch.equal(processor(last[0], return_tensors="pt").pixel_values, expected[:1])
    assert np.array_equal(processor(last, return_tensors="np").pixel_values, expected.numpy())
    assert torch.equal(torch.stack(list(processor(last).pixel_values)), expected)


def test_every_mode_of_pillow():
    processor, _ = processor_of(**RGB)
    colour = Image.fromarray(noise(8, 8, 3))
    palette = colour.quantize(16)
    opaque = Image.merge("RGBA", [*colour.split(), Image.new("L", (8, 8), 255)])
    clear = Image.merge("RGBA", [*colour.split(), Image.new("L", (8, 8), 0)])
    half = Image.merge("LA", [Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 128)])
    stencil = Image.fromarray(noise(8, 8) > 127)
    for image, expected in (
        (palette, palette.convert("RGB")),
        (opaque, colour),
        (clear, Image.new("RGB", (8, 8), "white")),
        (half, Image.new("RGB", (8, 8), (127, 127, 127))),
        (half.convert("La"), Image.new("RGB", (8, 8), (127, 127, 127))),
        (clear.convert("RGBa"), Image.new("RGB", (8, 8), "white")),
        (stencil, stencil.convert("RGB")),
        (colour.convert("CMYK"), colour.convert("CMYK").convert("RGB")),
        (colour.convert("YCbCr"), colour.convert("YCbCr").convert("RGB")),
    ):
        found = processor.pixels_to_images(processor(image, return_tensors="pt").pixel_values)[0]
        assert np.array_equal(np.array(found), np.array(expected)), image.mode


@pytest.mark.parametrize("fields", [GREY, RGB], ids=["grey", "rgb"])
def test_arrays_of_four_channels_are_rgba_on_white(fields):
    processor, _ = processor_of(**fields)
    last = noise(12, 9, 4)
    first = np.moveaxis(last, -1, 0).copy()
    expected = processor(Image.fromarray(last), return_tensors="pt").pixel_values
    mixed = [Image.fromarray(last), last, first, torch.from_numpy(last), torch.from_numpy(first)]
    for images in (*mixed, last[None], first[None], mixed):
        for found in processor(images, return_tensors="pt").pixel_values:
            assert torch.equal(found, expected[0])


def test_a_layout_that_is_named_is_believed():
    processor, _ = processor_of(**RGB)
    image = noise(3, 8, 3)  # three channels, whichever axis they are
    for layout, as_viewed in (("channels_last", image), ("channels_first", np.moveaxis(image, 0, -1))):
        expected = processor(Image.fromarray(as_viewed), return_tensors="pt").pixel_values
        found = processor([image], input_data_format=layout, return_tensors="pt").pixel_values
        assert torch.equal(found, expected)
    with pytest.raises(
        ValueError, match=r"shape \(8, 9, 3\) \(channels first\) has neither 1, 3 nor 4 channels.*layout"
    ):
        processor([noise(8, 9, 3)], input_data_format="channels_first")


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "tuple of tensors", "nested"])
def test_grey_arrays_without_channels(kind):
    """As `sklearn.datasets.load_digits().images` has them."""
    processor, _ = processor_of(**GREY)
    images = noise(5, 8, 8)
    expected = processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    given = {
        "array": images,
        "tensor": torch.from_numpy(images),
        "list": list(images),
        "tuple of tensors": tuple(torch.from_numpy(images)),
        "nested": [list(images[:2]), list(images[2:])],
    }[kind]
    assert torch.equal(processor(given, return_tensors="pt").pixel_values, expected)
    assert torch.equal(processor(images[0], return_tensors="pt").pixel_values, expected[:1])


def test_files_by_path_and_by_their_bytes_are_like_the_opened_image(tmp_path):
    """Upright by their EXIF tag, and with what is transparent on white."""
    processor, _ = processor_of(**RGB)
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn clockwise
    photo = Image.merge("RGBA", [*Image.fromarray(noise(8, 8, 3)).split(), Image.fromarray(noise(8, 8, seed=1))])
    photo.save(path, exif=exif)
    upright = Image.alpha_composite(Image.new("RGBA", (8, 8), "white"), photo).rotate(-90).convert("RGB")
    for image in (path, str(path), path.read_bytes(), Image.open(path), [path], [[str(path)]]):
        found = processor.pixels_to_images(processor(image, return_tensors="pt").pixel_values)
        assert len(found) == 1 and np.array_equal(np.array(found[0]), np.array(upright)), image


def test_palettes_with_a_transparent_colour():
    processor, _ = processor_of(**GREY)
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30])
    image.info["transparency"] = 0
    assert (processor(image, return_tensors="pt").pixel_values == 1).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "must be 8-bit.*not float32; multiply images in \\[0, 1\\] by 255"),
        (torch.zeros(3, 8, 8), "must be 8-bit.*not"),
        (np.zeros((8, 8, 3), np.uint16), "must be 8-bit.*not uint16"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "mode 'F' have no fixed range"),
        (Image.fromarray(np.zeros((8, 8), np.int32)), "mode 'I' have no fixed range"),
        (Image.fromarray(np.zeros((8, 8), np.uint16)), "mode 'I;16' have no fixed range"),
        (Image.new("LAB", (8, 8)), "mode 'LAB' have no fixed range or no way"),
        (np.zeros((0, 8), np.uint8), r"shape \(1, 0, 8\) has no pixels"),
        (Image.new("L", (8, 0)), r"shape \(8, 0\) has no pixels"),
        (np.zeros((2, 5, 8, 8), np.uint8), r"shape \(5, 8, 8\) has neither 1 nor 3 channels"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_images_without_a_fixed_range_or_channels_are_refused(image, message):
    processor, _ = processor_of(**RGB)
    with pytest.raises(ValueError, match=message):
        processor(image, return_tensors="pt")


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_grey_images_of_one_row_or_column_become_coloured(shape):
    processor, _ = processor_of(**RGB)
    image = np.full(shape, 51, np.uint8)
    expected = processor(Image.fromarray(image), return_tensors="pt").pixel_values
    assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("no/such/file.png", "Incorrect image source"),
        (Path("no/such/file.png"), "no image file 'no/such/file.png'"),
        (b"no image", "cannot identify image file"),
        ({"bytes": b""}, "dict is no image"),
        ([Image.new("L", (8, 8)), None], "NoneType is no image"),
        (3.0, "float is no image"),
        ([], "no images"),
        (np.zeros(8, np.uint8), r"shape \(8,\) is no image"),
        (np.zeros((3, 8, 8), np.uint8), r"one RGB image or three grey ones; pass \[image\], or .* \(3, 1, 8, 8\)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_image_is_refused(image, message):
    processor, _ = processor_of(**GREY)
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        processor(image, return_tensors="pt")


def test_channels_that_no_model_has_are_refused():
    with pytest.raises(ValueError, match=r"num_channels=4 must be 1 \(grey\) or 3"):
        HybridImageProcessor(num_channels=4)(Image.new("RGB", (8, 8)))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    """A header is all that the file has: whoever decoded it would find it cut."""
    write_png_header(tmp_path / "huge.png", 12000, 12000)
    processor, _ = processor_of(**RGB)
    for image in (str(tmp_path / "huge.png"), [str(tmp_path / "huge.png")], Image.open(tmp_path / "huge.png")):
        with pytest.raises(ValueError, match=r"12000 x 12000 pixels, more than 67,108,864.*max_pixels"):
            processor(image, return_tensors="pt")
    processor.max_pixels = 12000**2
    with pytest.raises(OSError, match="truncated"):
        processor(str(tmp_path / "huge.png"), return_tensors="pt")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 15, 4, dtype=torch.long), "15 patches, a whole image has 16"),
        (torch.zeros(1, 16, 5, dtype=torch.long), "expected"),
        (torch.full((1, 16, 4), 256), r"outside 0\.\.255"),
    ],
)
def test_codes_that_do_not_belong_to_it_are_refused(codes, message):
    processor, _ = processor_of(**GREY)
    with pytest.raises(ValueError, match=message):
        processor.codes_to_images(codes)


def test_survives_saving_and_overrides_by_call(tmp_path):
    processor, _ = processor_of(**GREY, num_levels=17)
    processor.save_pretrained(tmp_path)
    loaded = HybridImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = Image.fromarray(noise(20, 20))
    assert torch.equal(
        loaded(image, return_tensors="pt").pixel_values, processor(image, return_tensors="pt").pixel_values
    )
    assert loaded(image, size={"height": 4, "width": 4}, return_tensors="pt").pixel_values.shape == (1, 1, 4, 4)
    assert loaded(image, num_channels=3, return_tensors="pt").pixel_values.shape == (1, 3, 8, 8)
    assert loaded(image, num_levels=2, return_tensors="pt").pixel_values.unique().tolist() == [-1, 1]


def test_settings_belong_to_one_processor():
    one, other = HybridImageProcessor(), HybridImageProcessor()
    one.size["height"], one.num_levels = 8, 2
    assert (other.size["height"], other.num_levels) == (HybridImageProcessor().size["height"], 256) == (32, 256)


def test_settings_as_json(tmp_path):
    processor, _ = processor_of(**GREY, num_levels=17)
    processor.to_json_file(tmp_path / "processor.json")
    assert HybridImageProcessor.from_json_file(tmp_path / "processor.json").to_dict() == processor.to_dict()
    assert HybridImageProcessor.from_dict(processor.to_dict(), num_levels=5).num_levels == 5


def test_the_output_is_cast_as_a_whole():
    processor, _ = processor_of(**RGB)
    inputs = processor([noise(8, 8, 3)], return_tensors="pt")
    inputs["labels"] = torch.tensor([3])
    expected = inputs.pixel_values
    inputs = inputs.to("cpu", torch.bfloat16)
    assert (inputs.pixel_values.dtype, inputs.labels.dtype) == (torch.bfloat16, torch.int64)
    assert torch.equal(inputs.pixel_values, expected.to(torch.bfloat16))


def test_without_torchvision_its_backend_says_so():
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    with pytest.raises(ImportError, match="requires the Torchvision library"):
        HybridImageProcessorTorchvision()


TORCHVISION = """
    import torch

    try:
        import torchvision
    except RuntimeError:
        # A wheel built for CUDA beside the CPU build of torch: two of its operators are unknown, none of them needed.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float threshold) -> Tensor")
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor

    import modeling_hybrid
    from modeling_hybrid import HybridConfig, HybridImageProcessor, HybridImageProcessorTorchvision
    from modeling_hybrid.patch_codes import pixels_to_codes

    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for num_channels in (1, 3):
        config = HybridConfig(image_size=8, num_channels=num_channels, patch_size=2)
        pil = HybridImageProcessor.from_config(config)
        torchvision = HybridImageProcessorTorchvision.from_config(config)
        native = [Image.fromarray(image) for image in noise]
        transparent = np.concatenate([noise, noise[..., :1]], axis=-1)
        greys = [image.convert("L") for image in native]
        for images in (native, greys, list(noise), torch.from_numpy(noise), transparent, torch.from_numpy(transparent)):
            expected = pil(images, return_tensors="pt").pixel_values
            found = torchvision(images, return_tensors="pt").pixel_values
            assert torch.equal(found, expected)
        codes = pixels_to_codes(found, config)
        for image, again in zip(torchvision.codes_to_images(codes), pil.codes_to_images(codes), strict=True):
            assert np.array_equal(image, again)
        large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 21, 3), dtype=np.uint8))
        expected, found = (p(large, return_tensors="pt").pixel_values for p in (pil, torchvision))
        # Resizing differs by rounding.
        assert (found - expected).abs().max() <= 2.1 * 2 / 255
        for saver in (pil, torchvision):
            saver.save_pretrained("saved")
            assert type(AutoImageProcessor.from_pretrained("saved")) is HybridImageProcessorTorchvision
            assert type(AutoImageProcessor.from_pretrained("saved", backend="pil")) is HybridImageProcessor
    print("all equal")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed; the PIL backend serves"
)
def test_torchvision_backend_agrees_with_pil(run_python):
    assert "all equal" in run_python(TORCHVISION)
