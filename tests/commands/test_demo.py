"""What the page of `hybrid demo` says about an image; the page itself, in a browser, is a slow test."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_hybrid import HybridConfig, HybridForOutOfDistributionDetection, HybridImageProcessor
from modeling_hybrid.commands.collection import Collection
from modeling_hybrid.commands.detect import Threshold
from modeling_hybrid.commands.growth import InTerminal, as_they_grow
from modeling_hybrid.commands.playground import NUM_DRAWN, NUM_SAMPLES, Answers, build


@pytest.fixture(scope="module")
def with_threshold(tmp_path_factory, checkpoint, digit_images):
    """A folder that `hybrid detect fit` wrote, and one that `hybrid embed` wrote."""
    from typer.testing import CliRunner

    from modeling_hybrid.commands.app import app

    folder = tmp_path_factory.mktemp("demo")
    images = folder / "images"
    images.mkdir()
    for i, image in enumerate(digit_images):
        image.save(images / f"{i:03d}.png")
    for arguments in (
        ["detect", "fit", checkpoint, images, "--output", folder / "detector"],
        ["embed", folder / "detector", images, "--output", folder / "embedded"],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def answers(with_threshold):
    folder = with_threshold / "detector"
    model = HybridForOutOfDistributionDetection.from_pretrained(folder).eval()
    processor = HybridImageProcessor.from_pretrained(folder)
    threshold = Threshold(**json.loads((folder / "threshold.json").read_text()))
    return Answers(model, processor, threshold, Collection(with_threshold / "embedded"))


def test_the_nearest_image_is_the_image_itself(answers, digit_images):
    [(picture, caption), *others] = answers.neighbours(digit_images[7])
    assert len(others) == 7 and caption.endswith("007.png") and float(caption.split()[0]) == pytest.approx(1, abs=2e-3)
    shown = np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.NEAREST))
    np.testing.assert_allclose(shown, np.asarray(digit_images[7]), atol=1)


def test_surprise_says_the_bits_of_the_model(answers, digit_images):
    picture, words = answers.surprise(digit_images[3])
    with torch.no_grad():
        bits = answers.model.bits_per_dim(answers.pixels(digit_images[3])).item()
    assert f"**{bits:.3f}**" in words
    assert picture.width > picture.height


def test_verdict_and_histogram(answers, digit_images):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype="uint8"))
    words, rows = answers.verdict(noise)
    assert words.startswith("**strange**")
    assert rows[rows["of"] == "normal images"]["images"].sum() == len(answers.threshold.scores)
    assert (rows["of"] == "this image").sum() == 1
    assert rows["score"].iloc[-1] == rows["score"].max()  # where the image lies: at the upper end
    verdicts = [answers.verdict(image)[0].startswith("**normal**") for image in digit_images[:20]]
    assert sum(verdicts) > 10


def test_completions_grow_row_by_row_and_keep_the_upper_half(answers, digit_images):
    sheets = list(answers.completions(digit_images[0], 1.0, seed=0))
    assert len(sheets) == 3  # what is given, and two rows of patches
    columns, factor = 1 + NUM_DRAWN, sheets[0].height // 10
    small = [np.asarray(sheet.convert("L"))[::factor, ::factor] for sheet in sheets]
    for i in range(columns):
        tiles = [one[1:9, 1 + 9 * i : 9 + 9 * i] for one in small]
        for tile in tiles:
            np.testing.assert_allclose(tile[:4], np.asarray(digit_images[0])[:4], atol=1)
        if i:
            assert tiles[0][4:].max() == 0  # not drawn yet
    assert small[-1][5:9, 10:].max() > 0
    again = list(answers.completions(digit_images[0], 1.0, seed=0))
    np.testing.assert_array_equal(np.asarray(again[-1]), np.asarray(sheets[-1]))


def test_variations_are_drawn_from_the_features(told, digit_images):
    """What is drawn of them `test_generate.py` says; here, that no row of the image is given."""
    model, processor = (
        HybridForOutOfDistributionDetection.from_pretrained(told).eval(),
        HybridImageProcessor.from_pretrained(told),
    )
    answers = Answers(model, processor)
    assert answers.can_vary
    first, *_, last = answers.variations(digit_images[0], 1.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    codes = model.generate(answers.pixels(digit_images[0]), num_return_sequences=NUM_DRAWN, generator=generator)
    factor = last.height // 10
    for i, expected in enumerate(processor.codes_to_images(codes)):
        tile = np.asarray(last.convert("L"))[::factor, ::factor][1:9, 10 + 9 * i : 18 + 9 * i]
        np.testing.assert_allclose(tile, np.asarray(expected), atol=1)
        assert np.asarray(first.convert("L"))[::factor, ::factor][3:9, 10 + 9 * i : 18 + 9 * i].max() == 0


def test_samples_are_those_of_generate(answers):
    *_, images = as_they_grow(
        answers.model, answers.processor, batch_size=NUM_SAMPLES, generator=torch.Generator().manual_seed(3)
    )
    codes = answers.model.generate(batch_size=NUM_SAMPLES, generator=torch.Generator().manual_seed(3))
    for image, expected in zip(images, answers.processor.codes_to_images(codes), strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert len(list(answers.samples(0.5, seed=3))) == 4


def test_what_goes_wrong_while_drawing_is_told(answers):
    with pytest.raises(ValueError, match="batch_size=-1"):
        list(as_they_grow(answers.model, answers.processor, batch_size=-1))


def test_a_terminal_shows_images_over_each_other(capsys, digit_images):
    show = InTerminal()
    show(digit_images[:3])
    first = capsys.readouterr().err
    assert first.count("\n") == 4 and first.count("\N{UPPER HALF BLOCK}") == 3 * 4 * 8
    show(digit_images[:3])
    assert capsys.readouterr().err.startswith("\x1b[4A")


def test_refused_before_a_page_is_there(hybrid, checkpoint, with_threshold, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'modeling-hybrid[demo]'" in hybrid("demo", checkpoint, code=1).stderr
    monkeypatch.setitem(sys.modules, "gradio", pytest)  # anything: it does not come so far
    assert "no embedded collection" in hybrid("demo", checkpoint, "--collection", tmp_path, code=1).stderr
    other = HybridForOutOfDistributionDetection(HybridConfig.from_size("tiny"))
    for part in (other, HybridImageProcessor.from_config(other.config)):
        part.save_pretrained(tmp_path / "other")
    result = hybrid("demo", tmp_path / "other", "--collection", with_threshold / "embedded", code=1)
    assert "do not compare" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", ["whole", "told", "features alone"])
def test_the_page_has_what_the_checkpoint_can_do(answers, told, what):
    pytest.importorskip("gradio")
    drawn = {"Upper half kept, lower half drawn", "Drawn from its features alone", "Drawn by the model"}
    if what == "whole":
        labels = {"Upper half kept, lower half drawn", "Nearest images of the collection", "Drawn by the model"}
        page = build(answers, "title")
    elif what == "told":
        labels = drawn
        model = HybridForOutOfDistributionDetection.from_pretrained(told).eval()
        page = build(Answers(model, answers.processor), "title")
    else:
        config = HybridConfig.from_size("tiny", generative_weight=0)
        model = HybridForOutOfDistributionDetection(config).eval()
        labels = set()
        page = build(Answers(model, HybridImageProcessor.from_config(config)), "title")
    found = {block.label for block in page.blocks.values() if getattr(block, "label", None)}
    assert ("Image" in found) and (found & drawn <= labels)
    assert labels <= found


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver, of Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"),
        *("--disable-component-update", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"),
        "--window-size=1300,1500",
    ):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser


def wait(until, seconds=120):
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("is_space", [False, True])
def test_the_page_in_a_browser(is_space, with_threshold, browser, tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    detector, embedded = with_threshold / "detector", with_threshold / "embedded"
    if is_space:
        command = [str(Path(__file__).parents[2] / "model_cards" / "space" / "app.py")]
        settings = {"CHECKPOINT": str(detector), "COLLECTION": str(embedded), "GRADIO_SERVER_PORT": str(port)}
    else:
        command = ["-m", "modeling_hybrid.commands", "demo", str(detector), "--collection", str(embedded)]
        command += ["--port", str(port)]
        settings = {}
    environment = os.environ | settings | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.PIPE)
    try:

        def is_up():
            assert process.poll() is None, process.stderr.read().decode()
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}").status == 200
            except OSError:
                return False

        wait(is_up)
        browser.get(f"http://127.0.0.1:{port}")
        upload = wait(lambda: browser.find_elements("css selector", "input[type=file]"))[0]
        upload.send_keys(str(with_threshold / "images" / "005.png"))
        text = lambda: browser.find_element("tag name", "body").text  # noqa: E731
        wait(lambda: "bits per dimension" in text() and "threshold" in text() and "005.png" in text())
        [button] = [b for b in browser.find_elements("tag name", "button") if b.text == "Draw new images"]
        button.click()
        pictures = "img[src*='gradio_api/file']"
        wait(lambda: len(browser.find_elements("css selector", pictures)) >= 4)
        browser.save_screenshot(str(tmp_path / "page.png"))
        assert (tmp_path / "page.png").stat().st_size > 20_000
        assert "Error" not in text()
    finally:
        process.terminate()
        process.wait(30)
