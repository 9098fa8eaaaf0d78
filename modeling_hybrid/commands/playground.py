"""
The page of `hybrid demo`: what a checkpoint says about an image that is uploaded or drawn.

[`Answers`] is what the page shows, without the page; [`build`] is the page.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .checkpoints import has_detector, has_likelihood, measure, nll_maps
from .collection import Collection
from .detect import Threshold
from .growth import as_they_grow
from .options import require
from .pictures import sheet
from .search import exact, file_of, tile, unit
from .sources import Item
from .surprise import surprise


NUM_NEIGHBOURS, NUM_DRAWN, NUM_SAMPLES, NUM_BINS = 8, 4, 16, 20
_TILE = 96  # pixels of the screen
_STYLE = "footer {display: none !important} .pixels img {image-rendering: pixelated}"


@dataclass
class Answers:
    """
    Args:
        threshold: of a fitted detector.
        collection: that the neighbours are looked for in, embedded by this very model.
    """

    model: Any
    processor: Any
    threshold: Threshold | None = None
    collection: Collection | None = None

    @property
    def can_score(self) -> bool:
        return has_likelihood(self.model)

    @property
    def can_vary(self) -> bool:
        return self.can_score and self.model.condition is not None

    @property
    def can_detect(self) -> bool:
        return has_detector(self.model) and self.threshold is not None

    def pixels(self, image: Image.Image):
        """pixel_values (1, C, H, W)."""
        return self.processor(image, return_tensors="pt").pixel_values

    def neighbours(self, image: Image.Image) -> list[tuple[Image.Image, str]]:
        """Pictures of the nearest images, each with its cosine and name."""
        query = unit(measure(self.model, self.pixels(image)).features.numpy())
        [names], [similarities] = exact(self.collection, query, NUM_NEIGHBOURS)
        return [
            (enlarged(tile(file_of(name), self.processor)), f"{similarity:.3f} {name}")
            for name, similarity in zip(names, similarities, strict=True)
        ]

    def surprise(self, image: Image.Image) -> tuple[Image.Image, str]:
        """Map, and the bits per dimension in words."""
        from modeling_hybrid.likelihood import bits_per_dim

        pixel_values = self.pixels(image)
        maps = nll_maps(self.model, pixel_values)
        seen = self.processor.pixels_to_images(pixel_values)[0]
        bits = bits_per_dim(maps.sum(dim=1), self.model.config).item()
        return surprise(seen, maps[0].numpy()), f"**{bits:.3f}** bits per dimension. Bright patches are the unexpected."

    def verdict(self, image: Image.Image) -> tuple[str, Any]:
        """In words, and rows for a histogram: scores of normal images, and where that of this image lies."""
        import pandas

        score = measure(self.model, self.pixels(image)).strangeness.item()
        threshold, normal = self.threshold, np.array(self.threshold.scores)
        edges = np.histogram_bin_edges([*normal, threshold.threshold, score], NUM_BINS)
        counts, _ = np.histogram(normal, edges)
        own = min(int(np.searchsorted(edges, score, side="right")) - 1, NUM_BINS - 1)
        rows = pandas.DataFrame({"score": (edges[:-1] + edges[1:]) / 2, "images": counts, "of": "normal images"})
        rows.loc[len(rows)] = [rows["score"][own], max(1, counts.max() // 8), "this image"]
        verdict = "strange" if score > threshold.threshold else "normal"
        return (
            f"**{verdict}**: score {score:.3f}, threshold {threshold.threshold:.3f}, "
            f"p = {threshold.p_value(score):.3f} (of {len(normal)} normal images)",
            rows,
        )

    def completions(self, image: Image.Image, temperature: float, seed: int) -> Iterator[Image.Image]:
        """The image, and its lower half drawn several times, row by row."""
        config = self.model.config
        rows = math.ceil(config.image_size / config.patch_size / 2) * config.patch_size
        return self._row(image, temperature, seed, num_given_rows=rows)

    def variations(self, image: Image.Image, temperature: float, seed: int) -> Iterator[Image.Image]:
        """The image, and others that are drawn from its features alone, row by row."""
        return self._row(image, temperature, seed)

    def _row(self, image: Image.Image, temperature: float, seed: int, **arguments) -> Iterator[Image.Image]:
        pixel_values = self.pixels(image)
        [given] = self.processor.pixels_to_images(pixel_values)
        arguments |= self._sampling(temperature, seed) | {"num_return_sequences": NUM_DRAWN}
        for images in as_they_grow(self.model, self.processor, pixel_values=pixel_values, **arguments):
            yield sheet([given, *images], num_columns=1 + NUM_DRAWN, height=2 * _TILE)

    def samples(self, temperature: float, seed: int) -> Iterator[Image.Image]:
        """New images, row by row."""
        arguments = self._sampling(temperature, seed) | {"batch_size": NUM_SAMPLES}
        for images in as_they_grow(self.model, self.processor, **arguments):
            yield sheet(images, height=4 * _TILE)

    def _sampling(self, temperature: float, seed: int) -> dict:
        import torch

        generator = torch.Generator(self.model.device).manual_seed(int(seed))
        return {"temperature": temperature, "generator": generator}


def enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, _TILE // image.height)
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def build(answers: Answers, title: str):
    """A page of gradio, to be launched."""
    gradio = require("gradio", "demo")

    def opened(path: str | None) -> Image.Image | None:
        if path is None:
            return None
        try:
            with Item(path, path).open() as image:
                answers.pixels(image)  # refuses what cannot be read
                return image.copy()
        except Exception as error:  # decoders fail in many ways
            raise gradio.Error(f"This image cannot be read: {error}") from error

    def composed(drawing: dict | None) -> Image.Image | None:
        return None if drawing is None else drawing["composite"].convert("RGB")

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}")
        image = gradio.State()
        with gradio.Row():
            with gradio.Column(scale=1):
                with gradio.Tab("Upload"):
                    upload = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Image", height=300)
                with gradio.Tab("Draw"):
                    drawn = gradio.ImageEditor(
                        value=Image.new("RGB", (280, 280)),
                        type="pil",
                        sources=(),
                        transforms=(),
                        layers=False,
                        brush=gradio.Brush(default_size=22, default_color="#ffffff"),
                        label="White on black",
                        height=380,
                    )
                    use_drawing = gradio.Button("Use the drawing")
                temperature = gradio.Slider(0.1, 1.5, 1.0, step=0.05, label="Temperature: below 1, likelier images")
                seed = gradio.Number(0, precision=0, label="Seed")
            with gradio.Column(scale=2):
                if answers.can_score:
                    bits = gradio.Markdown()
                    surprise_map = gradio.Image(label="Image as the model sees it, and its surprise", height=220)
                    completed = gradio.Image(label="Upper half kept, lower half drawn", height=200)
                    if answers.can_vary:
                        varied = gradio.Image(label="Drawn from its features alone", height=200)
                    again = gradio.Button("Draw again")
                if answers.can_detect:
                    verdict = gradio.Markdown()
                    histogram = gradio.BarPlot(x="score", y="images", color="of", title="Strangeness", height=220)
                if answers.collection is not None:
                    gallery = gradio.Gallery(label="Nearest images of the collection", columns=4, height=300)
        if answers.can_score:
            draw = gradio.Button("Draw new images", variant="primary")
            sampled = gradio.Image(label="Drawn by the model", height=420)

        # What an image sets off; each answer comes as soon as it is there.
        upload.change(opened, upload, image)
        use_drawing.click(composed, drawn, image)

        def on_image(answer, *outputs):
            nothing = [None] * len(outputs) if len(outputs) > 1 else None
            image.change(lambda given: nothing if given is None else answer(given), image, list(outputs))

        if answers.can_score:
            on_image(answers.surprise, surprise_map, bits)

            redrawn = again.click(lambda seed: seed + 1, seed, seed)

            def grows(row, shown):
                def drawn(given, *others):
                    if given is not None:
                        yield from row(given, *others)

                for event in (image.change, redrawn.then):
                    event(drawn, [image, temperature, seed], shown)

            grows(answers.completions, completed)
            if answers.can_vary:
                grows(answers.variations, varied)
            draw.click(answers.samples, [temperature, seed], sampled)
        if answers.can_detect:
            on_image(answers.verdict, verdict, histogram)
        if answers.collection is not None:
            on_image(answers.neighbours, gallery)
    return page


def launch(page, **arguments):
    """Serve a page, which loads nothing from elsewhere."""
    gradio = require("gradio", "demo")
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return page.launch(theme=gradio.themes.Soft(**fonts), css=_STYLE, **arguments)
