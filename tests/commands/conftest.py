"""Small images and a small checkpoint, and a way to call the command as users do, in this process."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from modeling_hybrid import (
    HybridConfig,
    HybridForImageGeneration,
    HybridForOutOfDistributionDetection,
    HybridForPreTraining,
    HybridImageProcessor,
)
from modeling_hybrid.commands.app import app


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Names that are no files are looked for on the Hub, whose client waits long for a network that is not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def digit_images() -> list[Image.Image]:
    return [Image.fromarray((digit * 255 / 16).round().astype("uint8")) for digit in load_digits().images[:200]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, digit_images):
    """A model of 8x8 digits, trained for a second or two on the likelihood."""
    torch.manual_seed(0)
    config = HybridConfig.from_size(
        "tiny", hidden_size=32, num_encoder_layers=2, num_decoder_layers=1, depth_hidden_size=16, num_attention_heads=2
    )
    model, processor = HybridForPreTraining(config), HybridImageProcessor.from_config(config)
    pixel_values = processor(digit_images, return_tensors="pt").pixel_values
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(12):
        views = pixel_values[torch.randperm(len(pixel_values))[:32]].unsqueeze(1).expand(-1, 2, -1, -1, -1)
        optimizer.zero_grad()
        model(views).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def told(tmp_path_factory, checkpoint):
    """The same, with a decoder that listens to features, however it may understand them."""
    torch.manual_seed(0)
    model = HybridForImageGeneration.from_pretrained(checkpoint, decoder_condition="features")
    for name, weights in model.named_parameters():
        if "condition." in name or ".modulation." in name:
            torch.nn.init.normal_(weights, std=0.3)
    folder = tmp_path_factory.mktemp("told")
    for part in (model, HybridImageProcessor.from_pretrained(checkpoint)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detector(tmp_path_factory, checkpoint, digit_images):
    """The same, fitted."""
    processor = HybridImageProcessor.from_pretrained(checkpoint)
    model = HybridForOutOfDistributionDetection.from_pretrained(checkpoint)
    pixel_values = processor(digit_images, return_tensors="pt").pixel_values
    model.fit(pixel_values[:100], pixel_values[100:])
    folder = tmp_path_factory.mktemp("detector")
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory, digit_images):
    """A folder of 40 PNG files in two folders."""
    folder = tmp_path_factory.mktemp("digits")
    for i, image in enumerate(digit_images[:40]):
        path = folder / ("train" if i < 30 else "test") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    return folder


@pytest.fixture
def noise(tmp_path):
    """A folder of 5 images of no digit."""
    folder = tmp_path / "noise"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype="uint8")).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory, digit_images):
    """60 digits in the folders train and test, and what `hybrid curate` is to find among them."""
    folder = tmp_path_factory.mktemp("planted")
    train, test = folder / "train", folder / "test"
    for i, image in enumerate(digit_images[:60]):
        path = (train if i < 40 else test) / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    digit_images[3].save(train / "<img src=x onerror=alert(1)>.png")
    digit_images[4].convert("RGB").save(test / "leak.bmp")
    digit_images[5].save(test / "again.jpg", quality=75)
    assert not np.asarray(digit_images[6])[:, -1].any()  # so that a shift loses nothing
    Image.fromarray(np.roll(np.asarray(digit_images[6]), 1, axis=1)).save(train / "shifted.png")
    Image.fromarray((np.asarray(digit_images[7]) * 0.9).astype("uint8")).save(train / "darker.png")
    (train / "broken.png").write_bytes((train / "08.png").read_bytes()[:40])
    (train / "notes.txt").write_text("no image")
    digit_images[61].save(train / "a_png.jpg", "PNG")
    digit_images[62].save(test / "moves.gif", save_all=True, append_images=[digit_images[63]])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype="uint8")).save(test / "noise.png")
    Image.new("L", (8, 8)).save(test / "flat.png")
    return folder


@pytest.fixture(scope="session")
def curated(tmp_path_factory, planted, checkpoint):
    """Folder that `hybrid curate` wrote of them, and what it said."""
    output = tmp_path_factory.mktemp("curated")
    sources = [str(planted / name) for name in ("train", "test")]
    arguments = ["curate", str(checkpoint), *sources, "--output", str(output), "--num-shown", "3", "--near", "0.99"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return output, result.stderr


@pytest.fixture
def hybrid():
    """Calls a verb; the result has `exit_code`, `stdout` and `stderr`."""

    def call(*arguments, code: int = 0, stdin: str | bytes | None = None):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return result

    return call
