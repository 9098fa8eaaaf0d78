"""
Images -> pixel_values, and codes -> images. Exact on images that already have the model's size and levels.

Shape letters: B batch, C channels, H height, W width, S patches, K codes of a patch.
"""

from .version import REQUIREMENT  # noqa: F401  # isort: skip

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import (
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
    is_pil_image,
    load_image,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import requires_backends

from .configuration_hybrid import HybridConfig
from .levels import change_levels, levels_to_pixels, pixels_to_levels
from .patch_codes import check_codes, codes_to_pixels


_BACKENDS = {
    "pil": "image_processing_hybrid.HybridImageProcessor",
    "torchvision": "image_processing_hybrid.HybridImageProcessorTorchvision",
}


class HybridImageProcessorKwargs(ImagesKwargs, total=False):
    """
    num_channels (`int`):
        1 for grey, 3 for RGB; images of another mode are converted.
    num_levels (`int`):
        Values that one channel of a pixel can take; the 256 values of a byte are rounded to the nearest of them.
    patch_size (`int`):
        Side of a patch; needed to put codes back in their places.
    """

    num_channels: int
    num_levels: int
    patch_size: int


def _single_images(images, num_channels: int) -> Iterator:
    """
    One image after the other, of whatever holds them: PIL images, grey (H, W) and other arrays, stacks of them, paths,
    bytes of files, URLs, and lists of these.

    Raises:
        TypeError: what is no image.
        ValueError: an array of another number of dimensions, or one that may be one image or three.
    """
    if isinstance(images, (list, tuple)):
        for image in images:
            # In a list, an array with channels is one image.
            yield from [image] if getattr(image, "ndim", None) == 3 else _single_images(image, num_channels)
    elif isinstance(images, (np.ndarray, torch.Tensor)):
        shape = tuple(images.shape)
        if len(shape) == 2:
            yield images[None]
        elif len(shape) == 4:
            yield from images
        elif len(shape) == 3 and not {shape[0], shape[2]} & {1, 3, 4}:
            yield from images[:, None]
        elif len(shape) == 3 and shape[0] == 3 and shape[2] not in (1, 3, 4) and num_channels == 1:
            raise ValueError(
                f"An array of shape {shape} may be one RGB image or three grey ones; pass [image], or the grey ones as "
                f"{(3, 1, *shape[1:])}."
            )
        elif len(shape) == 3:
            yield images
        else:
            raise ValueError(f"An array of shape {shape} is no image, (height, width) or with channels, nor a stack.")
    elif isinstance(images, bytes):
        yield Image.open(BytesIO(images))
    elif isinstance(images, (str, Path)) and Path(images).is_file():
        yield Image.open(images)
    elif isinstance(images, str):
        yield load_image(images)
    elif isinstance(images, Path):
        raise FileNotFoundError(f"There is no image file {str(images)!r}.")
    elif is_pil_image(images):
        yield images
    else:
        raise TypeError(f"{type(images).__name__} is no image; pass PIL images, arrays, paths, URLs or lists of these.")


def as_viewed(image: Image.Image, mode: str) -> Image.Image:
    """
    An image as a viewer shows it, upright and on white, in mode "L" or "RGB".

    Raises:
        ValueError: values without a fixed range, such as those of 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("RGBA", "LA", "P", "PA"):
        # Transparent pixels carry arbitrary colours.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode.startswith(("I", "F", "LAB")):
        raise ValueError(
            f"Images of mode {image.mode!r} have no fixed range or no way to grey or RGB; convert to 8 bits first "
            "(mode 'L' or 'RGB')."
        )
    return image.convert(mode)


class _HybridImageProcessing:
    """
    What both backends share: conversion to grey or RGB, resizing, rounding to levels, and the way back.

    With `do_rescale=False`, `pixel_values` are the levels themselves, uint8, as they are stored; models take them
    rescaled to [-1, 1].

    Images of more than `max_pixels` pixels are refused before they are decoded: one takes 20 bytes a pixel and more.

    Transparent pixels come on white, and 16-bit grey is refused. A pipeline of transformers makes RGB of an image
    before it comes here: it drops the transparency and saturates what has 16 bits. Convert such images first.
    """

    max_pixels = 2**26
    valid_kwargs = HybridImageProcessorKwargs
    model_input_names = ["pixel_values"]
    do_resize = True
    size = {"height": 32, "width": 32}
    do_rescale = True
    resample = PILImageResampling.BICUBIC
    num_channels = 3
    num_levels = 256
    patch_size = 4

    @classmethod
    def from_config(cls, config: HybridConfig):
        """The processor that fits a model."""
        return cls(
            size={"height": config.image_size, "width": config.image_size},
            num_channels=config.num_channels,
            num_levels=config.num_levels,
            patch_size=config.patch_size,
        )

    def to_dict(self) -> dict:
        # The checkpoint names both backends, whichever of them saves it; the reader takes the one that it can import.
        return super().to_dict() | {"auto_map": {"AutoImageProcessor": dict(_BACKENDS)}}

    def _prepare_image_like_inputs(self, images, *args, num_channels=None, **kwargs):
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels={num_channels} must be 1 (grey) or 3 (RGB).")
        images = list(_single_images(images, num_channels))
        if not images:
            raise ValueError("There are no images to process; pass one or more.")
        return super()._prepare_image_like_inputs(images, *args, num_channels=num_channels, **kwargs)

    def check_pixels(self, image: Image.Image) -> None:
        """
        Looks at no more than the header of an image that was opened.

        Raises:
            ValueError: it has more than `max_pixels` pixels.
        """
        if image.width * image.height > self.max_pixels:
            raise ValueError(
                f"The image has {image.width} x {image.height} pixels, more than {self.max_pixels:,}; make it smaller, "
                "or set max_pixels of the image processor if memory suffices."
            )

    def process_image(self, image, num_channels=None, **kwargs):
        if is_pil_image(image):
            self.check_pixels(image)
            image = as_viewed(image, "L" if num_channels == 1 else "RGB")
        shape = tuple(image.size if is_pil_image(image) else image.shape)
        if 0 in shape:
            raise ValueError(f"An image of shape {shape} has no pixels; leave it out.")
        if not is_pil_image(image) and not {shape[0], shape[-1]} & {1, 3, 4}:
            raise ValueError(f"An image of shape {shape} has neither 1 nor 3 channels; give grey or RGB images.")
        if not is_pil_image(image) and kwargs.get("input_data_format") is None:
            kwargs["input_data_format"] = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        image = super().process_image(image, **kwargs)
        if image.dtype not in (np.uint8, torch.uint8):
            raise ValueError(
                f"Images must be 8-bit (uint8, 0..255), not {image.dtype}; multiply images in [0, 1] by 255 and cast."
            )
        if image.shape[0] != num_channels:
            if image.shape[0] not in (1, 3, 4):
                raise ValueError(
                    f"An image of shape {tuple(image.shape)} (channels first) has neither 1, 3 nor 4 channels; "
                    "give grey, RGB or RGBA images, and the layout that they have as input_data_format."
                )
            pixels = np.moveaxis(np.asarray(image), 0, -1)
            pixels = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            converted = np.array(as_viewed(pixels, "L" if num_channels == 1 else "RGB"))
            converted = converted[None] if num_channels == 1 else np.moveaxis(converted, -1, 0)
            image = torch.from_numpy(converted.copy()) if isinstance(image, torch.Tensor) else converted
        return image

    def _preprocess(
        self, images, do_resize, size: SizeDict, resample, do_rescale, num_levels, return_tensors=None, **kwargs
    ):
        pixel_values = []
        for image in images:
            if do_resize and tuple(image.shape[-2:]) != (size.height, size.width):
                image = self.resize(image, size, resample)
            image = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
            levels = change_levels(image, 256, num_levels)
            pixel_values.append(levels_to_pixels(levels, num_levels) if do_rescale else levels)
        if len({tuple(image.shape) for image in pixel_values}) == 1:
            pixel_values = torch.stack(pixel_values)
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    def pixels_to_images(self, pixel_values: torch.Tensor) -> list[Image.Image]:
        """pixel_values (B, C, H, W) in [-1, 1] -> PIL images of mode "L" or "RGB"."""
        pixels = pixels_to_levels(pixel_values.detach().cpu(), 256)
        return [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in pixels]

    def codes_to_images(self, codes: torch.Tensor) -> list[Image.Image]:
        """
        Codes (B, S, K), for instance what `generate` returns, -> PIL images.

        Raises:
            ValueError: codes that do not belong to this processor's size, patch size and levels.
        """
        config = HybridConfig(
            image_size=self.size["height"],
            num_channels=self.num_channels,
            num_levels=self.num_levels,
            patch_size=self.patch_size,
        )
        check_codes(codes, config)
        if codes.shape[1] != config.num_patches:
            raise ValueError(f"codes has {codes.shape[1]} patches, a whole image has {config.num_patches}.")
        return self.pixels_to_images(codes_to_pixels(codes, config))


class HybridImageProcessor(_HybridImageProcessing, PilBackend):
    """Image processor on PIL and numpy; what `AutoImageProcessor` gives where torchvision is not installed."""


class HybridImageProcessorTorchvision(_HybridImageProcessing, TorchvisionBackend):
    """The same on torchvision, whose resizing differs from PIL's by rounding; used where torchvision is installed."""

    def __init__(self, **kwargs):
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)


__all__ = ["HybridImageProcessor", "HybridImageProcessorTorchvision"]
