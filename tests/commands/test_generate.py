"""`hybrid generate`, `hybrid complete` and `hybrid vary`: sheets, single files, seeds, and what is given stays."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_hybrid import HybridForImageGeneration, HybridImageProcessor


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_sheets_and_single_files(hybrid, checkpoint, tmp_path):
    arguments = ["generate", checkpoint, "-n", 5, "--batch-size", 2, "--temperature", 0.8, "--top-p", 0.9]
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        hybrid(*arguments, "--seed", seed, "--output", tmp_path / f"{name}.png")
    one, same, other = (pixels(tmp_path / f"{name}.png") for name in ("one", "same", "other"))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    hybrid(*arguments, "--output", tmp_path / "single")
    files = sorted((tmp_path / "single").iterdir())
    assert len(files) == 5 and pixels(files[0]).shape == (8, 8)


def test_completions_keep_what_is_given(hybrid, checkpoint, digits, tmp_path):
    arguments = ["complete", checkpoint, digits / "test", "--limit", 3, "-n", 2, "--given", 0.5]
    hybrid(*arguments, "--output", tmp_path / "rows")
    files = sorted((tmp_path / "rows").iterdir())
    assert len(files) == 3
    for path in files:
        row = pixels(path)[..., 0]
        factor = len(row) // 10  # a row of 8 pixels between two lines
        row = row[::factor, ::factor]
        image, *completions = (row[1:9, 1 + 9 * i : 9 + 9 * i] for i in range(3))
        for completed in completions:
            np.testing.assert_array_equal(completed[:4], image[:4])
        assert any((completed != image).any() for completed in completions)
    hybrid(*arguments, "--output", tmp_path / "sheet.png")
    assert pixels(tmp_path / "sheet.png").shape[0] % 28 == 0


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_variations_are_drawn_from_features(hybrid, told, digits, tmp_path, guidance):
    arguments = ["vary", told, digits / "test", "--limit", 3, "-n", 2, "--guidance", guidance, "--seed", 4]
    hybrid(*arguments, "--batch-size", 2, "--output", tmp_path / "sheet.png")
    found = pixels(tmp_path / "sheet.png")[..., 0]
    factor = len(found) // 28  # three rows of 8 pixels between four lines
    found = [[found[::factor, ::factor][1 + 9 * y :, 1 + 9 * x :][:8, :8] for x in range(3)] for y in range(3)]

    model, processor = HybridForImageGeneration.from_pretrained(told).eval(), HybridImageProcessor.from_pretrained(told)
    images = [Image.open(path) for path in sorted((digits / "test").iterdir())[:3]]
    pixel_values, generator = processor(images, return_tensors="pt").pixel_values, torch.Generator().manual_seed(4)
    with torch.no_grad():
        features = model.encoder(pixel_values).pooler_output.repeat_interleave(2, dim=0)
    codes = [
        model.generate(features=part, guidance_scale=guidance, generator=generator)
        for part in (features[:4], features[4:])
    ]
    drawn = [np.asarray(image) for image in processor.codes_to_images(torch.cat(codes))]
    for row, image, expected in zip(found, images, zip(drawn[::2], drawn[1::2], strict=True), strict=True):
        np.testing.assert_array_equal(row[0], np.asarray(image))
        np.testing.assert_array_equal(row[1:], expected)


def test_refused(hybrid, checkpoint, digits, tmp_path):
    assert "--temperature" in hybrid("generate", checkpoint, "-o", tmp_path, "--temperature", 0, code=2).stderr
    assert "no folder nowhere" in hybrid("generate", "nowhere", "-o", tmp_path, code=1).stderr
    told = hybrid("vary", checkpoint, digits, "-o", tmp_path / "sheet.png", code=1).stderr
    assert "train one with decoder_condition='features'" in told
