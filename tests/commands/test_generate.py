"""`hybrid generate` and `hybrid complete`: sheets, single files, seeds, and what is given stays."""

import numpy as np
from PIL import Image


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


def test_refused(hybrid, checkpoint, tmp_path):
    assert "--temperature" in hybrid("generate", checkpoint, "-o", tmp_path, "--temperature", 0, code=2).stderr
    assert "no folder nowhere" in hybrid("generate", "nowhere", "-o", tmp_path, code=1).stderr
