"""Views: clean ones are the data, augmented ones differ from image to image, and nothing leaves its range."""

import pytest
import torch

from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL
from training.config import AugmentationConfig
from training.data.views import Views


NUM_LEVELS = 17
OPERATIONS = {
    "crop_area": [0.3, 0.6],
    "rotation_degrees": 20.0,
    "shift": 0.2,
    "scale": [0.5, 0.8],
    "shear_degrees": 10.0,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.3,
    "gamma": [0.3, 0.5],
    "blur_sigma": [0.5, 1.0],
    "noise": 0.1,
    "erase_area": [0.2, 0.4],
}
ALWAYS = {"jitter_probability": 1.0, "blur_probability": 1.0, "erase_probability": 1.0}


def same_image_many_times(num_channels: int, num_images: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(NUM_LEVELS, (1, num_channels, 8, 8), generator=generator, dtype=torch.uint8)
    return levels.repeat(num_images, 1, 1, 1)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_draws_anew_for_each_image(name, num_channels):
    if num_channels == 1 and name in ("saturation", "hue"):
        pytest.skip("refused by the configuration")
    levels = same_image_many_times(num_channels)
    views = Views(AugmentationConfig(**{name: OPERATIONS[name]}, **ALWAYS), 8, NUM_LEVELS)
    clean, augmented = views(levels)["pixel_values"]
    assert ((augmented - clean).abs().flatten(1).amax(1) > 1e-4).all()
    # Different by more than a hundredth somewhere, not by rounding.
    differences = (augmented[:, None] - augmented[None]).abs().flatten(2).amax(2)
    assert (differences > 0.01).float().mean() > 0.5


@pytest.mark.parametrize("name", ["flip_probability", "grey_probability"])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_probabilities_are_shares_of_the_images(name, probability):
    levels = same_image_many_times(3, num_images=400)
    clean, augmented = Views(AugmentationConfig(**{name: probability}), 8, NUM_LEVELS)(levels)["pixel_values"]
    changed = (augmented - clean).abs().flatten(1).amax(1) > 1e-2
    assert changed.float().mean().item() == pytest.approx(probability, abs=0.1 if probability == 0.5 else 0)
    expected = clean.flip(-1) if name == "flip_probability" else augmented[:, :1].expand_as(augmented)
    torch.testing.assert_close(augmented[changed], expected[changed])


def test_without_operations_every_view_is_the_image():
    levels = same_image_many_times(1)
    pixel_values = Views(AugmentationConfig(num_augmented_views=2), 8, NUM_LEVELS)(levels)["pixel_values"]
    for view in pixel_values:
        torch.testing.assert_close(view, levels_to_pixels(levels, NUM_LEVELS))


@pytest.mark.parametrize(("clean", "augmented"), [(1, 1), (2, 3), (0, 2), (2, 0)])
def test_number_kinds_and_range_of_views(clean, augmented):
    levels = torch.randint(NUM_LEVELS, (5, 3, 8, 8), dtype=torch.uint8)
    config = AugmentationConfig(num_clean_views=clean, num_augmented_views=augmented, noise=0.5, gamma=[0.5, 2.0])
    pixel_values, kinds = Views(config, 8, NUM_LEVELS)(levels).values()
    assert pixel_values.shape == (clean + augmented, 5, 3, 8, 8) and pixel_values.dtype == torch.float32
    assert kinds.tolist() == [CLEAN] * clean + [AUGMENTED] * augmented
    assert pixel_values.abs().max() <= 1
    for view in pixel_values[:clean]:
        assert torch.equal(view, levels_to_pixels(levels, NUM_LEVELS))
    for one, other in zip(pixel_values[clean:], pixel_values[clean + 1 :], strict=False):
        assert (one - other).abs().max() > 0.1


def test_a_seed_repeats_the_draws():
    levels = same_image_many_times(3)
    views = Views(AugmentationConfig(**OPERATIONS, **ALWAYS, flip_probability=0.5, grey_probability=0.5), 8, NUM_LEVELS)
    torch.manual_seed(3)
    first, second = views(levels)["pixel_values"], views(levels)["pixel_values"]
    torch.manual_seed(3)
    assert torch.equal(views(levels)["pixel_values"], first)
    assert (first - second).abs().max() > 0.1


def test_geometry_stays_within_its_ranges():
    """A single bright pixel off the centre: rotation keeps its distance, a shift moves it by at most its share."""
    levels = torch.zeros(200, 1, 33, 33, dtype=torch.uint8)
    levels[:, :, 16, 28] = 16
    grid = torch.arange(33.0) - 16

    def positions(**ranges) -> torch.Tensor:
        views = Views(AugmentationConfig(padding="zeros", **ranges), 33, NUM_LEVELS)
        view = (views(levels)["pixel_values"][1] + 1).squeeze(1)
        mass = view.sum((1, 2))
        return torch.stack([(view.sum(1) * grid).sum(1) / mass, (view.sum(2) * grid).sum(1) / mass], dim=1)

    rotated = positions(rotation_degrees=30.0)
    angle = torch.rad2deg(torch.atan2(rotated[:, 1], rotated[:, 0]))
    assert angle.abs().max() <= 31 and angle.min() < -20 and angle.max() > 20
    torch.testing.assert_close(rotated.norm(dim=1), torch.full((200,), 12.0), atol=0.5, rtol=0)
    moved = positions(shift=0.1) - torch.tensor([12.0, 0.0])
    assert 2 < moved.abs().max() <= 3.4


@pytest.mark.parametrize(("padding", "darkest"), [("zeros", -1.0), ("border", 1.0), ("reflection", 1.0)])
def test_padding(padding, darkest):
    levels = torch.full((20, 1, 8, 8), NUM_LEVELS - 1, dtype=torch.uint8)
    pixel_values = Views(AugmentationConfig(shift=0.5, padding=padding), 8, NUM_LEVELS)(levels)["pixel_values"]
    assert pixel_values[1].min().item() == pytest.approx(darkest, abs=1e-5)


def test_local_views_are_small_crops_under_their_own_kind():
    """The image is a ramp from black to white, so the spread of a view tells how much of it is shown."""
    ramp = torch.arange(17, dtype=torch.uint8).expand(200, 1, 17, 17)
    config = AugmentationConfig(
        num_clean_views=1, num_augmented_views=1, num_local_views=2, crop_area=[0.9, 1.0], local_crop_area=[0.1, 0.2]
    )
    inputs = Views(config, 17, NUM_LEVELS)(ramp)
    assert inputs.keys() == {"pixel_values", "view_kinds"}
    assert inputs["view_kinds"].tolist() == [CLEAN, AUGMENTED, LOCAL, LOCAL]
    spread = (inputs["pixel_values"].amax((2, 3, 4)) - inputs["pixel_values"].amin((2, 3, 4))) / 2
    assert (spread[1] > 0.7).all()
    assert (spread[2:] < 0.6).all() and spread[2:].mean() < 0.45
    assert (inputs["pixel_values"][2] - inputs["pixel_values"][3]).abs().max() > 0.1


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"crop_area": [0.2, 0.6]},
        {"flip_probability": 1.0},
        {"shift": 0.2, "scale": [0.8, 1.2]},
        {"crop_area": [0.3, 0.6], "flip_probability": 0.5, "shift": 0.05},
    ],
    ids=str,
)
def test_boxes_say_what_a_view_shows(geometry):
    """Each pixel of the image says where it is, so each pixel of a view must say what its box says."""
    size, num_levels = 33, 256
    place = torch.linspace(0, 255, size).round().to(torch.uint8)
    levels = torch.stack([place.expand(size, size), place[:, None].expand(size, size), place.expand(size, size)])
    config = AugmentationConfig(num_local_views=1, local_crop_area=[0.2, 0.4], **geometry)
    inputs = Views(config, size, num_levels, with_boxes=True)(levels.expand(20, 3, size, size))
    boxes = inputs["boxes"]
    assert boxes.shape == (3, 20, 4)
    torch.testing.assert_close(boxes[0], torch.tensor([0.0, 0, 1, 1]).expand(20, 4))
    # Pixel centres of the view, by its box; colours are places of centres, the first at 0 and the last at 1.
    share = (torch.arange(size) + 0.5) / size
    for low, high, channel, dim in ((0, 2, 0, -2), (1, 3, 1, -1)):
        position = boxes[..., low, None] + (boxes[..., high] - boxes[..., low])[..., None] * share
        expected = (position * size - 0.5) / (size - 1)
        found = (inputs["pixel_values"][:, :, channel].mean(dim) + 1) / 2
        inside = (expected > 0.02) & (expected < 0.98)
        assert inside.any()
        # An empty border, which a shift leaves, has no place.
        difference = (found - expected).abs()[inside]
        assert difference.median() < 0.02 and (difference < 0.05).float().mean() > 0.8
    mirrored = boxes[..., 0] > boxes[..., 2]
    assert mirrored[1].all() == (geometry.get("flip_probability") == 1.0)
