"""The picture at the head of the README, put together from pictures of the cards."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


# The sets, with the side of their images; the tiles of a panel.
SETS = {
    "digits": ("digits, 8x8 grey", 8),
    "font_glyphs_28": ("glyphs, 28x28 grey", 28),
    "noto_emoji_32": ("emoji, 32x32 RGB", 32),
}
TILE, NUM_COLUMNS, NUM_ROWS, MAP_HEIGHT = 64, 6, 3, 280
GRID, WHITE, GREY, BLACK = (90, 110, 160), (255, 255, 255), (80, 80, 80), (0, 0, 0)


def overview(model_cards: Path) -> Image.Image:
    """Of each set: first samples, first completions, and the map of the features, from the pictures of its card."""
    cards = [(model_cards / name / "figures", size) for name, (_, size) in SETS.items()]
    bands = {
        "generated from nothing": [_panel(folder / "samples.png", size, 8) for folder, size in cards],
        "completed: the upper half of a test image, four completions, the image itself": [
            _panel(folder / "completions.png", size, 12) for folder, size in cards
        ],
        "embedded: features of test images (t-SNE), coloured by class": [
            _feature_map(folder / "features.png") for folder, _ in cards
        ],
    }
    width, gap, line = NUM_COLUMNS * (TILE + 2) + 2, 24, 30
    height = sum(line + max(panel.height for panel in panels) + 12 for panels in bands.values())
    canvas = Image.new("RGB", (len(SETS) * (width + gap) - gap, line + height), WHITE)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=17)
    lefts = [i * (width + gap) for i in range(len(SETS))]
    for left, (title, _) in zip(lefts, SETS.values(), strict=True):
        draw.text((left + width // 2, line // 2), title, BLACK, font, anchor="mm")
    top = line
    for caption, panels in bands.items():
        draw.text((2, top + line // 2), caption, GREY, font, anchor="lm")
        top += line
        for left, panel in zip(lefts, panels, strict=True):
            canvas.paste(panel, (left + (width - panel.width) // 2, top))
        top += max(panel.height for panel in panels) + 12
    return canvas


def _panel(sheet: Path, size: int, num_columns: int) -> Image.Image:
    """The first images, of `size` pixels a side, of a sheet with `num_columns`, enlarged without smoothing."""
    with Image.open(sheet) as opened:
        factor = opened.width // (num_columns * (size + 1) + 1)
        images = opened.resize((opened.width // factor, opened.height // factor), Image.Resampling.NEAREST)
    panel = Image.new("RGB", (NUM_COLUMNS * (TILE + 2) + 2, NUM_ROWS * (TILE + 2) + 2), GRID)
    for row in range(NUM_ROWS):
        for column in range(NUM_COLUMNS):
            left, top = 1 + column * (size + 1), 1 + row * (size + 1)
            shown = TILE // size * size
            image = images.crop((left, top, left + size, top + size)).resize((shown, shown), Image.Resampling.NEAREST)
            tile = Image.new("RGB", (TILE, TILE), BLACK)
            tile.paste(image, ((TILE - shown) // 2, (TILE - shown) // 2))
            panel.paste(tile, (2 + column * (TILE + 2), 2 + row * (TILE + 2)))
    return panel


def _feature_map(picture: Path) -> Image.Image:
    """What is inside the frame of the picture: without title and legend."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    dark = np.asarray(image).max(axis=2) < 60
    columns, rows = (np.flatnonzero(dark.mean(axis=axis) > 0.7) for axis in (0, 1))
    frame = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return frame.resize((round(frame.width * MAP_HEIGHT / frame.height), MAP_HEIGHT), Image.Resampling.LANCZOS)
