"""Mixtures of discretised logistics: masses to the ends of the range, what a pixel knows, draws, half precision."""

import itertools

import pytest
import torch

from modeling_hybrid import HybridForImageGeneration
from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.logistic_mixture import log_mass, places_around, window
from modeling_hybrid.patch_codes import levels_to_codes
from modeling_hybrid.sampling import Draw


MIXTURE = {"code_distribution": "logistic_mixture", "num_mixture_components": 3}


@pytest.mark.parametrize("num_levels", [2, 16, 17, 256])
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 2.0, 6.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.003, 0.999, 2.0])
def test_masses_are_exact_in_single_precision(num_levels, log_scale, mean):
    """Against the difference of distribution functions in double precision; and no gradient is infinite."""
    values = levels_to_pixels(torch.arange(num_levels), num_levels)
    parameters = [torch.tensor([x], requires_grad=True) for x in (mean, log_scale)]
    found = log_mass(values, *parameters, num_levels)
    assert found.isfinite().all()
    assert found.double().exp().sum().item() == pytest.approx(1, abs=1e-4)

    edges = (torch.arange(num_levels - 1).double() + 0.5) * (2 / (num_levels - 1)) - 1
    below = torch.special.expit((edges - mean) / torch.tensor(log_scale).double().exp())
    masses = torch.diff(below, prepend=torch.zeros(1).double(), append=torch.ones(1).double())
    told = masses > 1e-6  # what double precision can tell by a difference
    torch.testing.assert_close(found.exp()[told].double(), masses[told], rtol=1e-3, atol=1e-6)

    for gradient in torch.autograd.grad(found.sum(), parameters):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_around_a_patch_only_earlier_patches_are_known(patch_size, num_channels):
    size, num_codes = 8, num_channels * patch_size**2
    side = size // patch_size
    places = places_around(size, patch_size, num_channels)
    for patch, row in enumerate(places.view(side**2, -1, num_channels)):
        inside = row[row[:, 0] < side**2 * num_codes]
        assert (inside // num_codes < patch).all()
        # Each pixel once, its channels in order.
        assert len(inside.flatten().unique()) == inside.numel()
        assert ((inside - inside[:, :1]) == torch.arange(num_channels)).all()
    # A patch inside of the image sees the whole window.
    if patch_size == 1:
        assert (places[3 * side + 3] < side**2 * num_codes).all() and len(window(1)) == 16


@torch.no_grad()
def test_a_pixel_starts_as_the_mean_of_its_neighbours(tiny_config):
    """Left and above, across the edges of patches, channel by channel."""
    config = tiny_config(image_size=8, num_channels=3, num_levels=256, **MIXTURE)
    model = HybridForImageGeneration(config).double()
    model.depth_head.output.weight.zero_()
    model.depth_head.output.bias.zero_()
    levels = torch.randint(256, (2, 3, 8, 8)).to(torch.uint8)
    codes = levels_to_codes(levels, config)
    states = torch.zeros(2, config.num_patches, config.hidden_size, dtype=torch.double)
    ((_, _, means, _),) = model.depth_head._mixtures(states, codes, 10**9)
    means = (
        means[0].permute(2, 1, 0).reshape(2, 4, 4, 2, 2, 3)
    )  # image, row and column of the patch, of the pixel, channel
    pixels = levels_to_pixels(levels, 256)
    padded = torch.nn.functional.pad(pixels, (1, 0, 1, 0))
    expected = (padded[:, :, 1:, :-1] + padded[:, :, :-1, 1:]) / 2
    found = means.permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 8, 8)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("draw", [Draw(), Draw(warp=lambda logits: logits)], ids=["by component", "by level"])
def test_both_ways_of_drawing_draw_what_is_scored(make_model, draw):
    """Frequencies of all 125 colours of one pixel, against their likelihoods; 3 draws in a hundred may differ."""
    model = make_model(
        HybridForImageGeneration, noise=0.5, image_size=1, patch_size=1, pooling_grid=1, num_channels=3, **MIXTURE
    )
    num_draws = 20_000
    state = torch.randn(1, 16)
    draw.generator = torch.Generator().manual_seed(0)
    none = torch.empty(num_draws, 0, 3, dtype=torch.long)
    codes = model.depth_head.sample(state.expand(num_draws, -1), none, draw)
    frequencies = torch.bincount((codes * torch.tensor([25, 5, 1])).sum(1), minlength=125) / num_draws
    colours = torch.tensor(list(itertools.product(range(5), repeat=3)))[:, None]
    nll = model.depth_head.nll(state.expand(125, 1, -1), colours)
    assert (frequencies - (-nll.sum((1, 2))).exp()).abs().sum() / 2 < 0.03


@torch.no_grad()
def test_half_precision_is_near_single_precision(make_model, draw_images):
    model = make_model(HybridForImageGeneration, num_levels=256, num_channels=3, **MIXTURE)
    x = draw_images(model.config, 8)
    expected = model.bits_per_dim(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.bits_per_dim(x), expected, rtol=0.02, atol=0.02)
    half = model.to(torch.bfloat16).bits_per_dim(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)
