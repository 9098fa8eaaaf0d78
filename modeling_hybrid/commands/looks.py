"""What is kept of an image beside what the model says of it: its pixels in small, and what kind of file it is."""

import os
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from statistics import median
from tempfile import TemporaryFile

import numpy as np
from PIL import Image

from .sources import Item


# Side of the pictures by which near duplicates are told, and of those that are shown.
FINGERPRINT_SIZE = 32
_THUMBNAIL_SIZE = 128
# An image is odd in what no more than this share of the images have.
_RARE = 0.01
# Sides in a ratio above the first, and areas that differ from the median by more than the second factor, are odd.
_LONG, _LARGE = 3, 16


@dataclass
class Look:
    """
    Args:
        digest: the same for the same size and RGB pixels, whatever the file.
        fingerprint: (FINGERPRINT_SIZE, FINGERPRINT_SIZE, 3) in uint8, the image squeezed into it.
        thumbnail: the bytes of a small PNG or JPEG file.
        size: width and height in pixels.
        traits: what of the file may be unusual, by name.
        error: what is wrong with the file in itself; empty, if nothing is.
    """

    digest: bytes
    fingerprint: np.ndarray
    thumbnail: bytes
    size: tuple[int, int]
    traits: dict[str, str]
    error: str


def look(item: Item, image: Image.Image) -> Look:
    """At an image that was opened and is small enough to be decoded."""
    from modeling_hybrid.image_processing_hybrid import as_viewed

    viewed = as_viewed(image, "RGB")
    size = viewed.size
    digest = blake2b(repr(size).encode(), digest_size=16)
    digest.update(viewed.tobytes())
    fingerprint = np.asarray(viewed.resize((FINGERPRINT_SIZE, FINGERPRINT_SIZE), Image.Resampling.BILINEAR))
    kind, options = "PNG", {}
    if max(size) > _THUMBNAIL_SIZE:
        kind, options = "JPEG", {"quality": 80}
        viewed.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    viewed.save(thumbnail := BytesIO(), kind, **options)
    # Multi-picture files of cameras hold a preview beside a JPEG.
    of_camera = image.format == "MPO"
    content = "JPEG" if of_camera else image.format
    has_frames = not of_camera and getattr(image, "is_animated", False)
    traits = {
        "size": f"{size[0]} x {size[1]}",
        "mode": f"mode {image.mode}",
        "format": content,
        "transparency": "transparent" if image.has_transparency_data else "opaque",
        "frames": "several frames (the first is looked at)" if has_frames else "of one frame",
    }
    named = Image.registered_extensions().get(os.path.splitext(item.name)[1].lower(), content)
    error = "" if named in (content, image.format) else f"{content} by its content, {named} by its name"
    return Look(digest.digest(), fingerprint, thumbnail.getvalue(), size, traits, error)


def oddities(looks: list[Look]) -> dict[int, str]:
    """What is odd about images among the others, by their number."""
    usual: dict[str, str] = {}
    rare: dict[str, set[str]] = {}
    for name in looks[0].traits:
        counts = Counter(one.traits[name] for one in looks)
        value, count = counts.most_common(1)[0]
        if count > len(looks) / 2:
            usual[name] = value
            rare[name] = {other for other in counts.keys() - {value} if counts[other] <= max(1, _RARE * len(looks))}
    typical = median(width * height for width, height in (one.size for one in looks))
    found = {}
    for i, one in enumerate(looks):
        odd = [one.error] if one.error else []
        odd += [f"{one.traits[name]}, most are {usual[name]}" for name in usual if one.traits[name] in rare[name]]
        width, height = one.size
        if "size" not in usual and max(width, height) > _LONG * min(width, height):
            odd.append(f"{width} x {height}, one side more than {_LONG} times the other")
        if "size" not in usual and not typical / _LARGE <= width * height <= typical * _LARGE:
            odd.append(f"{width} x {height}, while half have {typical:.0f} pixels or more")
        if odd:
            found[i] = "; ".join(odd)
    return found


class Thumbnails:
    """The pictures of all images, in a file that vanishes with the process: few of them are shown, and which is known
    at the end."""

    def __init__(self):
        self.file = TemporaryFile()  # noqa: SIM115
        self.ends = [0]

    def add(self, thumbnail: bytes) -> None:
        self.file.write(thumbnail)
        self.ends.append(self.ends[-1] + len(thumbnail))

    def __getitem__(self, i: int) -> bytes:
        self.file.seek(self.ends[i])
        return self.file.read(self.ends[i + 1] - self.ends[i])
