"""Between levels, pixel_values and shares nothing is lost."""

import pytest
import torch

from modeling_hybrid.levels import (
    change_levels,
    levels_to_pixels,
    levels_to_shares,
    nearest_levels,
    pixels_to_levels,
    shares_to_levels,
)


@pytest.mark.parametrize("num_levels", [2, 3, 16, 17, 32, 255, 256])
def test_there_and_back_is_exact(num_levels):
    levels = torch.arange(num_levels).to(torch.uint8)
    pixels, shares = levels_to_pixels(levels, num_levels), levels_to_shares(levels, num_levels)
    assert pixels[0] == -1 and shares[0] == 0 and pixels.dtype == shares.dtype == torch.float32
    torch.testing.assert_close((pixels[-1], shares[-1]), (torch.tensor(1.0), torch.tensor(1.0)))
    torch.testing.assert_close((pixels + 1) / 2, shares)
    for back in (pixels_to_levels(pixels, num_levels), shares_to_levels(shares, num_levels)):
        assert back.dtype == torch.uint8 and torch.equal(back, levels)
    # Of any number of levels, those of a byte lose nothing.
    assert torch.equal(change_levels(change_levels(levels, num_levels, 256), 256, num_levels), levels)


def test_the_nearest_level_and_none_outside():
    pixels = torch.tensor([-1.4, -1.0, -0.7, 0.2, 0.3, 1.0, 7.0])
    assert pixels_to_levels(pixels, 5).tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert pixels_to_levels(pixels.to(torch.bfloat16), 5).tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert shares_to_levels(torch.tensor([-0.2, 0.1, 0.4, 1.3]), 5).tolist() == [0, 0, 2, 4]
    assert torch.equal(nearest_levels(pixels, 5), levels_to_pixels(pixels_to_levels(pixels, 5), 5))
    assert pixels.tolist()[0] == pytest.approx(-1.4)  # not changed in place
