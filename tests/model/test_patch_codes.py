"""pixel_values <-> codes: exact both ways, in every precision, and what does not fit is refused."""

import itertools

import pytest
import torch

from modeling_hybrid import HybridForImageGeneration, HybridForPreTraining, HybridModel
from modeling_hybrid.patch_codes import check_codes, codes_to_pixels, pixels_to_codes, sincos_table


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("num_levels", [2, 3, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_round_trip_is_exact(tiny_config, num_channels, num_levels, dtype):
    """For every level there is, in every precision that a model may be cast to."""
    config = tiny_config(image_size=16, patch_size=4, num_channels=num_channels, num_levels=num_levels)
    codes = torch.arange(2 * config.num_dims).view(2, config.num_patches, config.num_codes) % num_levels
    pixel_values = codes_to_pixels(codes, config)
    assert pixel_values.shape == (2, num_channels, 16, 16)
    assert pixel_values.min() == -1
    assert pixel_values.max() == 1
    assert torch.equal(pixels_to_codes(pixel_values.to(dtype), config), codes)


def test_order_of_patches_and_codes(tiny_config):
    """Patches in raster order; in a patch row by row, the channels of a pixel together."""
    config = tiny_config(num_channels=3, num_levels=256)
    levels = torch.arange(48).view(1, 3, 4, 4)
    codes = pixels_to_codes(levels * (2 / 255) - 1, config)
    for row, column, y, x, c in itertools.product(range(2), range(2), range(2), range(2), range(3)):
        assert codes[0, 2 * row + column, 6 * y + 3 * x + c] == levels[0, c, 2 * row + y, 2 * column + x]


def test_values_between_levels_go_to_the_nearest(tiny_config):
    config = tiny_config(image_size=2, patch_size=2, num_levels=3)
    pixel_values = torch.tensor([-0.6, -0.4, 0.4, 0.6]).view(1, 1, 2, 2)
    assert pixels_to_codes(pixel_values, config).tolist() == [[[0, 1, 1, 2]]]


BAD_PIXELS = [
    (torch.zeros(2, 3, 4, 4), r"shape \(\d, 3, 4, 4\), expected \(batch, 1, 4, 4\)"),
    (torch.zeros(2, 1, 4, 6), r"shape \(\d, 1, 4, 6\), expected \(batch, 1, 4, 4\)"),
    (torch.zeros(2, 1, 8, 8), r"shape \(\d, 1, 8, 8\), expected \(batch, 1, 4, 4\)"),
    (torch.full((2, 1, 4, 4), 1.01), r"outside \[-1, 1\]"),
    (torch.full((2, 1, 4, 4), -7.0), r"outside \[-1, 1\]"),
    (torch.full((2, 1, 4, 4), torch.nan), r"outside \[-1, 1\] \(or NaN\)"),
    (torch.full((2, 1, 4, 4), torch.inf), r"outside \[-1, 1\]"),
    (torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), r"outside \[-1, 1\]"),
]


@pytest.mark.parametrize(("pixel_values", "message"), BAD_PIXELS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("entry", ["features", "likelihood", "pretraining", "completion"])
def test_bad_pixels_are_refused_everywhere(make_model, entry, pixel_values, message):
    model = make_model()
    call = {
        "features": model.encoder,
        "likelihood": model.log_likelihood,
        "pretraining": lambda x: model(x[None].expand(2, *x.shape)),
        "completion": lambda x: model.generate(pixel_values=x, num_given_rows=2),
    }[entry]
    with pytest.raises(ValueError, match=message):
        call(pixel_values)


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((2, 4, 4), 5, r"outside 0\.\.4 \(num_levels=5\)"),
        ((2, 4, 4), -1, r"outside 0\.\.4"),
        ((2, 4, 3), 0, r"shape \(2, 4, 3\), expected \(batch, at most 4, 4\)"),
        ((2, 5, 4), 0, r"shape \(2, 5, 4\), expected \(batch, at most 4, 4\)"),
        ((2, 16), 0, r"shape \(2, 16\), expected"),
        ((2, 3, 4), 0, "codes has 3 patches, a whole image has 4"),
    ],
)
def test_bad_codes_are_refused(make_model, shape, value, message):
    model = make_model(HybridForImageGeneration)
    codes = torch.full(shape, value)
    for call in (model, model.log_likelihood, model.bits_per_dim, model.encoder):
        with pytest.raises(ValueError, match=message):
            call(codes=codes)


def test_codes_must_be_integers(make_model):
    config = make_model().config
    with pytest.raises(ValueError, match=r"codes has dtype torch\.float32, expected torch\.int64"):
        check_codes(torch.zeros(2, 4, 4), config)


def test_pixels_and_codes_together_or_neither_are_refused(make_model, draw_images):
    model = make_model(HybridModel)
    x = draw_images(model.config)
    for arguments in ({}, {"pixel_values": x, "codes": pixels_to_codes(x, model.config)}):
        with pytest.raises(ValueError, match="Pass either pixel_values or codes"):
            model(**arguments)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (torch.zeros(2, dtype=torch.long), r"view_kinds has shape \(2,\), expected \(3,\)"),
        (torch.zeros(3, 1, dtype=torch.long), r"view_kinds has shape \(3, 1\), expected \(3,\)"),
        (torch.full((3,), 2), r"outside 0\.\.1 \(num_view_kinds=2\)"),
        (torch.full((3,), -1), r"outside 0\.\.1"),
    ],
)
def test_bad_view_kinds_are_refused(make_model, draw_images, kinds, message):
    model = make_model()
    x = draw_images(model.config)
    for call in (model.encoder, model.log_likelihood):
        with pytest.raises(ValueError, match=message):
            call(x, view_kinds=kinds)
    views = x[:, None].expand(3, 2, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        HybridForPreTraining.forward(model, views, view_kinds=kinds)


def test_positions_start_apart():
    table = sincos_table(4, 16)
    assert table.shape == (16, 16)
    distances = torch.cdist(table, table) + torch.eye(16)
    assert distances.min() > 0.1
