"""
Draws font_glyphs_28: the digits and lower-case letters of open fonts, grey, 28x28.

    python -m training.image_sets.font_glyphs_28

fetches the fonts, as packages of Debian 12 (another release lacks some, and has others anew). Elsewhere, give a folder
of fonts; `usr/share/fonts` of those packages, unpacked into one folder, gives the same images:

    python -m training.image_sets.font_glyphs_28 --fonts /usr/share/fonts
"""

import string
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from tqdm.auto import tqdm

from ..command import command, parser_of
from .common import run_tool, split_by, write_image_set


HERE = Path(__file__).parent
CHARACTERS = string.digits + string.ascii_lowercase
COLUMNS = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(CHARACTERS)),
        "family": datasets.Value("string"),
    }
)
IMAGE_SIZE = 28
# Longest side of a glyph in its image, and the size that it is drawn at before that, in pixels.
GLYPH_SIZE = 22
FONT_SIZE = 64
# A face with fewer distinct pictures draws one box for many characters; one below this mean (0 to 255) is hardly seen.
MIN_DISTINCT = 32
MIN_MEAN = 8
PUBLISHED = "d803ea09db25334c92fda08770004b5ff471de3cba78b16a7b6eb5c1b5568b91"


def fetch_fonts(folder: Path) -> Path:
    """Downloads and unpacks the Debian packages in `folder`; returns where their fonts lie."""
    advice = (
        "run `apt-get update` on Debian 12 (or in its container) and try again, or name a folder of fonts with --fonts."
    )
    packages = (HERE / "font_packages.txt").read_text().split()
    run_tool(["apt-get", "download", *packages], folder, advice)
    for archive in tqdm(sorted(folder.glob("*.deb")), desc="Unpacking"):
        run_tool(["dpkg-deb", "--extract", archive.name, "unpacked"], folder, advice)
    return folder / "unpacked/usr/share/fonts"


def draw_glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """
    The character white on black (28x28), or `None` where it leaves no ink.

    Its text box (the ink, with the advance beside it) is scaled to 22 pixels on the longest side, and centred.
    """
    left, top, right, bottom = font.getbbox(character)
    box = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(box).text((-left, -top), character, fill=255, font=font)
    if box.getbbox() is None:
        return None
    scale = GLYPH_SIZE / max(box.size)
    glyph = box.resize([max(1, round(side * scale)) for side in box.size], Image.Resampling.LANCZOS)
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    image.paste(glyph, ((IMAGE_SIZE - glyph.width) // 2, (IMAGE_SIZE - glyph.height) // 2))
    return image


def draw_face(path: Path) -> tuple[str, list[Image.Image]] | None:
    """Family and pictures of all characters of a font file, or `None` where it lacks some."""
    try:
        font = ImageFont.truetype(path, FONT_SIZE)
    except OSError:  # bitmaps of fixed sizes, or a broken file
        return None
    images = [draw_glyph(font, character) for character in CHARACTERS]
    if None in images or len({image.tobytes() for image in images}) < MIN_DISTINCT or np.mean(images) < MIN_MEAN:
        return None
    return font.getname()[0], images


def draw_fonts(folder: Path) -> list[dict]:
    """
    One row per character of every face below `folder`, equal faces only once.

    Raises:
        ValueError: there is no such face.
    """
    files = (path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf") and path.is_file())
    rows, seen = [], set()
    # As strings: of equal faces, the first of this order gives the family.
    for path in tqdm(sorted(files, key=str), desc="Drawing faces"):
        face = draw_face(path)
        if face is None:
            continue
        family, images = face
        pixels = b"".join(image.tobytes() for image in images)
        if pixels not in seen:
            seen.add(pixels)
            rows += [{"image": image, "label": label, "family": family} for label, image in enumerate(images)]
    if not rows:
        raise ValueError(f"{folder} holds no .ttf or .otf file with all of {CHARACTERS}; name another with --fonts.")
    return rows


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.image_sets.font_glyphs_28", __doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("data/font_glyphs_28"))
    parser.add_argument("--fonts", type=Path, help="folder of .ttf and .otf files, instead of Debian's packages")
    options = parser.parse_args(arguments)
    if not features.check("raqm"):
        print(
            "warning: Pillow finds no Raqm (install libfribidi0); some glyphs will lie a pixel beside.", file=sys.stderr
        )
    with TemporaryDirectory() as scratch:
        splits = split_by("family", draw_fonts(options.fonts or fetch_fonts(Path(scratch))))
    generator = np.random.default_rng(0)
    splits = {name: [rows[i] for i in generator.permutation(len(rows))] for name, rows in splits.items()}
    write_image_set(splits, COLUMNS, options.output_dir, HERE / "font_glyphs_28.md", PUBLISHED)


if __name__ == "__main__":
    sys.exit(main())
