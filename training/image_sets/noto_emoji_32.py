"""
Builds noto_emoji_32: Google's Noto emoji on white, RGB, 32x32.

    python -m training.image_sets.noto_emoji_32

fetches an npm package (74 MB). Without npm, give that package, packed or unpacked:

    python -m training.image_sets.noto_emoji_32 --package emoji-datasource-google-16.0.0.tgz
"""

import json
import sys
from pathlib import Path

import datasets
from PIL import Image
from tqdm.auto import tqdm

from ..command import command, parser_of
from .common import add_package, file_of, npm_package, split_by, write_image_set


PACKAGE = "emoji-datasource-google@16.0.0"
IMAGE_SIZE = 32
PUBLISHED = "66d27fd9067bb01fac701c350ba42afc573dc5ffb29202477a9acabb682a9e35"


def draw_emoji(path: Path) -> Image.Image:
    """The emoji on white, RGB, 32x32."""
    with Image.open(path) as opened:
        emoji = opened.convert("RGBA")
    white = Image.new("RGBA", emoji.size, "white")
    flat = Image.alpha_composite(white, emoji).convert("RGB")
    return flat.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)


def read_package(package: Path) -> tuple[list[dict], list[str]]:
    """
    One row per emoji and skin tone, in the order of the package, and the names of the categories.

    Raises:
        ValueError: `package` is not the folder of such a package.
    """
    listed = json.loads(file_of(package, "emoji.json", PACKAGE).read_text("utf-8"))
    # Components are bare skin tones and hair, no emoji of their own.
    entries = [entry for entry in listed if entry["category"] != "Component"]
    categories = sorted({entry["category"] for entry in entries})
    rows = [
        {
            "image": draw_emoji(package / "img/google/64" / variant["image"]),
            "label": categories.index(entry["category"]),
            "subcategory": entry["subcategory"],
            "name": entry["short_name"],
            "skin_tone": skin_tone,
        }
        for entry in tqdm(entries, desc="Reading emoji")
        for skin_tone, variant in {"": entry, **entry.get("skin_variations", {})}.items()
    ]
    return rows, categories


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.image_sets.noto_emoji_32", __doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("data/noto_emoji_32"))
    add_package(parser, PACKAGE)
    options = parser.parse_args(arguments)
    with npm_package(PACKAGE, options.package) as package:
        rows, categories = read_package(package)
    columns = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=categories),
            "subcategory": datasets.Value("string"),
            "name": datasets.Value("string"),
            "skin_tone": datasets.Value("string"),
        }
    )
    card = Path(__file__).with_suffix(".md")
    write_image_set(split_by("name", rows), columns, options.output_dir, card, PUBLISHED)


if __name__ == "__main__":
    sys.exit(main())
