"""`hybrid export`: files that say what the checkpoint says, in onnxruntime and in torch alone."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modeling_hybrid import (
    HybridForImageGeneration,
    HybridForOutOfDistributionDetection,
    HybridImageProcessor,
    HybridModel,
)
from modeling_hybrid.commands import graph
from modeling_hybrid.commands.detect import THRESHOLD_FILE, Threshold


@pytest.fixture
def with_threshold(detector, tmp_path):
    """A fitted detector whose threshold lies in the midst of its scores."""
    folder = shutil.copytree(detector, tmp_path / "detector")
    scores = np.linspace(0.5, 4, 20, dtype="float32").tolist()
    threshold = {"false_alarm_rate": 0.5, "threshold": scores[10], "low": 0.2, "high": 0.8, "scores": scores}
    (folder / THRESHOLD_FILE).write_text(json.dumps(threshold))
    return folder


def session(path):
    """pixel_values -> outputs by name, and the metadata."""
    onnxruntime = pytest.importorskip("onnxruntime")
    opened = onnxruntime.InferenceSession(path)
    names = [output.name for output in opened.get_outputs()]
    run = lambda x: dict(zip(names, opened.run(names, {"pixel_values": np.asarray(x)}), strict=True))  # noqa: E731
    return run, opened.get_modelmeta().custom_metadata_map


@torch.no_grad()
def said(folder, x) -> dict:
    """What the models of a checkpoint say, each by its own way."""
    model = HybridForImageGeneration.from_pretrained(folder).eval()
    features = HybridModel.from_pretrained(folder).eval()(x).pooler_output
    return {"features": features, "log_likelihood": model.log_likelihood(x), "bits_per_dim": model.bits_per_dim(x)}


def test_detector_in_onnxruntime(hybrid, with_threshold, digit_images, tmp_path):
    pytest.importorskip("onnxscript")
    file = tmp_path / "new" / "digits.onnx"
    result = hybrid("export", with_threshold, "--output", file)
    assert [file] == list(file.parent.iterdir()) and "score (batch): largest difference" in result.stdout
    run, metadata = session(file)
    mean, std = (float(metadata[name]) for name in ("image_mean", "image_std"))
    x = np.stack([(np.array(image, "float32")[None] - mean) / std for image in digit_images])
    processor = HybridImageProcessor.from_pretrained(with_threshold)
    pixel_values = processor(digit_images, return_tensors="pt").pixel_values
    x[:5] = np.random.default_rng(0).uniform(-1, 1, x[:5].shape)
    pixel_values[:5] = torch.from_numpy(x[:5])
    expected = said(with_threshold, pixel_values)
    detector = HybridForOutOfDistributionDetection.from_pretrained(with_threshold).eval()
    with torch.no_grad():
        expected["score"] = detector(pixel_values).scores
    for num in (1, 2, 200):
        found = run(x[:num])
        for name, values in expected.items():
            torch.testing.assert_close(torch.from_numpy(found[name]), values[:num], atol=1e-4, rtol=1e-4)
    threshold = Threshold.read(with_threshold, None)
    assert float(metadata["threshold"]) == threshold.threshold
    assert found["is_strange"].tolist() == [score > threshold.threshold for score in found["score"].tolist()]
    assert 0 < found["is_strange"].mean() < 1
    p_values = [threshold.p_value(score) for score in found["score"].tolist()]
    np.testing.assert_allclose(found["p_value"], p_values, rtol=1e-6)
    assert len(set(p_values)) > 10
    # An image at the very threshold is no stranger than that; the least below, and it is.
    onnx = pytest.importorskip("onnx")
    model, at = onnx.load(file), found["score"][100]
    (inside,) = [one for one in model.graph.initializer if one.name.endswith("threshold")]
    for value, verdict in ((at, False), (np.nextafter(at, np.float32(-1)), True)):
        inside.CopyFrom(onnx.numpy_helper.from_array(np.array(value, "float32"), inside.name))
        onnx.save(model, tmp_path / "moved.onnx")
        assert session(tmp_path / "moved.onnx")[0](x)["is_strange"][100] == verdict


def test_any_byte_is_prepared_as_by_the_processor():
    from modeling_hybrid.levels import change_levels, pixels_to_levels

    byte = torch.arange(256, dtype=torch.uint8)
    for num_levels in range(2, 257):
        expected = change_levels(byte, 256, num_levels)
        assert torch.equal(pixels_to_levels((byte.float() - 127.5) / 127.5, num_levels), expected)
        assert torch.equal(pixels_to_levels(byte.float() / 127.5 - 1, num_levels), expected)


def test_program_of_torch(hybrid, checkpoint, digit_images, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "other")
    HybridImageProcessor.from_pretrained(checkpoint, resample=2).save_pretrained(tmp_path / "other")
    parts = ["--part", "features", "--part", "likelihood"]
    hybrid("export", tmp_path / "other", "--output", tmp_path / "digits.pt2", *parts)
    extra = {"metadata.json": ""}
    with open(tmp_path / "digits.pt2", "rb") as file:
        module = torch.export.load(file, extra_files=extra).module()
    x = HybridImageProcessor.from_pretrained(checkpoint)(digit_images, return_tensors="pt").pixel_values
    expected = said(checkpoint, x)
    metadata = json.loads(extra["metadata.json"])
    assert (metadata["num_levels"], metadata["resample"]) == ("17", "bilinear")
    for num in (1, 30):
        found = module(pixel_values=x[:num])
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values[:num], atol=1e-4, rtol=1e-4)


def test_log_ndtr():
    z = torch.cat([torch.linspace(-300, 10, 4001), torch.linspace(-2, 2, 2001)])
    torch.testing.assert_close(graph.log_ndtr(z).double(), torch.special.log_ndtr(z.double()), atol=1e-6, rtol=1e-6)


def test_what_differs_is_not_kept(hybrid, checkpoint, tmp_path, monkeypatch):
    def write(of, path, int8):
        def run(pixel_values):
            outputs = of(torch.from_numpy(pixel_values))
            return {name: value.numpy() + 0.01 * (name == "bits_per_dim") for name, value in outputs.items()}

        return run

    monkeypatch.setitem(graph.FORMATS, ".pt2", write)
    result = hybrid("export", checkpoint, "--output", tmp_path / "digits.pt2", code=1)
    assert "bits_per_dim by" in result.stderr and not list(tmp_path.iterdir())


def test_refused(hybrid, checkpoint, detector, tmp_path, monkeypatch):
    def refusal(*arguments):
        return hybrid("export", *arguments, code=1).stderr

    pt2, onnx = tmp_path / "a.pt2", tmp_path / "a.onnx"
    assert "end in .onnx or .pt2" in refusal(checkpoint, "--output", tmp_path / "a.txt")
    assert "end in .onnx, or be" in refusal(checkpoint, "--output", pt2, "--int8")
    assert "has no detector that was fitted" in refusal(checkpoint, "--output", pt2, "--part", "detector")
    assert f"no {THRESHOLD_FILE}" in refusal(detector, "--output", pt2)
    assert "no checkpoint" in refusal(tmp_path, "--output", pt2)
    (tmp_path / "file").touch()
    assert "file" in refusal(checkpoint, "--output", tmp_path / "file" / "a.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "modeling-hybrid[export]" in refusal(checkpoint, "--output", onnx)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["attention", "contextual", "mean", "regional"])
@pytest.mark.parametrize("head", ["softmax", "logistic_mixture"])
@pytest.mark.parametrize("encoder_attention", ["causal", "two_pass"])
def test_every_pooling_and_head(make_model, draw_images, hybrid, tmp_path, pooling, head, encoder_attention):
    pytest.importorskip("onnxscript")
    model = make_model(
        HybridForImageGeneration, pooling=pooling, code_distribution=head, encoder_attention=encoder_attention
    )
    x = draw_images(model.config, 7)
    for part in (model, HybridImageProcessor.from_config(model.config)):
        part.save_pretrained(tmp_path / "model")
    hybrid("export", tmp_path / "model", "--output", tmp_path)
    found, expected = session(tmp_path / "model.onnx")[0](x), said(tmp_path / "model", x)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), values, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_int8(hybrid, checkpoint, digit_images, tmp_path):
    pytest.importorskip("onnxscript")
    result = hybrid("export", checkpoint, "--output", tmp_path / "int8.onnx", "--int8")
    assert "bits_per_dim (batch): relative error 0." in result.stdout
    x = HybridImageProcessor.from_pretrained(checkpoint)(digit_images, return_tensors="pt").pixel_values
    run, metadata = session(tmp_path / "int8.onnx")
    found, expected = run(x), said(checkpoint, x)
    assert metadata["precision"] == "int8"
    similarity = torch.cosine_similarity(torch.from_numpy(found["features"]), expected["features"])
    assert 0.99 < similarity.min() < 0.999999
    np.testing.assert_allclose(found["bits_per_dim"], expected["bits_per_dim"], rtol=0.05)
    size = sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())
    assert (tmp_path / "int8.onnx").stat().st_size < size
