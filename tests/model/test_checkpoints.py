"""One saved checkpoint: every Auto class, the pipelines, other processes, with the package and without it."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from modeling_hybrid import (
    HybridConfig,
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridForOutOfDistributionDetection,
    HybridForPreTraining,
    HybridImageProcessor,
    HybridModel,
)
from modeling_hybrid.objectives import OBJECTIVES


AUTO_CLASSES = {
    AutoModel: HybridModel,
    AutoModelForPreTraining: HybridForPreTraining,
    AutoModelForCausalLM: HybridForImageGeneration,
    AutoModelForImageClassification: HybridForImageClassification,
}

# Everything that every class puts out, from one folder. Runs here and, as text, in other processes.
OUTPUTS = """
import numpy as np, torch
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM,
                          AutoModelForImageClassification, AutoModelForPreTraining)


def outputs_of(folder, classifier_folder, **kwargs):
    config = AutoConfig.from_pretrained(folder, **kwargs)
    assert type(config).__name__ == "HybridConfig"
    processor = AutoImageProcessor.from_pretrained(folder, **kwargs)
    noise = np.random.default_rng(0).integers(0, 256, (4, 9, 7), dtype=np.uint8)
    images = [Image.fromarray(image) for image in noise]
    x = processor(images, return_tensors="pt").pixel_values
    result = {"processor": x}
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder, **kwargs)(x)
        result["states"], result["features"] = features.last_hidden_state, features.pooler_output
        pretraining = AutoModelForPreTraining.from_pretrained(folder, **kwargs)(x.view(2, 2, *x.shape[1:]))
        for name in ("loss", "contrastive_loss", "generative_loss", "nll", "projections"):
            result[name] = getattr(pretraining, name)
        generator = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
        result["log_likelihood"] = generator.log_likelihood(x)
        torch.manual_seed(5)
        result["codes"] = generator.generate(batch_size=3, temperature=0.8, top_p=0.9)
        result["plain_codes"] = generator.generate(batch_size=3)
        result["sample"] = torch.from_numpy(np.stack(processor.codes_to_images(result["codes"])))
        classifier = AutoModelForImageClassification.from_pretrained(classifier_folder, **kwargs)
        result["classes"] = classifier(x).logits
    return result
"""
namespace = {}
exec(OUTPUTS, namespace)
outputs_of = namespace["outputs_of"]


@pytest.fixture(scope="module", params=["softmax", "logistic_mixture"])
def folders(tmp_path_factory, make_model, request):
    """A pre-training checkpoint and a classification checkpoint, each with its image processor."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(1)
    for name, model_class, overrides in (
        ("hybrid-pretrained", HybridForPreTraining, {"objective": {"name": "info_nce", "temperature": 0.1}}),
        ("hybrid.classifier", HybridForImageClassification, {"num_labels": 7}),
    ):
        model = make_model(model_class, code_distribution=request.param, **overrides)
        model.save_pretrained(root / name)
        HybridImageProcessor.from_config(model.config).save_pretrained(root / name)
    return root / "hybrid-pretrained", root / "hybrid.classifier"


@pytest.fixture(scope="module")
def expected(folders, tmp_path_factory):
    """What all of it puts out in this process, and a file of it."""
    result = outputs_of(*folders)
    path = tmp_path_factory.mktemp("expected") / "expected.pt"
    torch.save(result, path)
    return result, path


# Another process may have another number of threads, so floats agree up to rounding; codes and bytes agree exactly.
COMPARE = """
def compare(result, path):
    for name, value in torch.load(path).items():
        torch.testing.assert_close(result[name], value, msg=lambda text: f"{name}: {text}")
"""


def test_one_checkpoint_serves_every_auto_class(folders):
    folder, _ = folders
    assert type(AutoConfig.from_pretrained(folder)) is HybridConfig
    for auto_class, model_class in AUTO_CLASSES.items():
        model, info = auto_class.from_pretrained(folder, output_loading_info=True)
        assert type(model) is model_class
        assert not model.training
        fresh = {"classifier.weight", "classifier.bias"} if auto_class is AutoModelForImageClassification else set()
        assert set(info["missing_keys"]) == fresh
        assert not info["unexpected_keys"]


def test_auto_image_processor_where_torchvision_is_missing(folders):
    processor = AutoImageProcessor.from_pretrained(folders[0], backend="pil")
    assert type(processor) is HybridImageProcessor
    assert processor.size == {"height": 4, "width": 4}
    assert (processor.num_channels, processor.num_levels, processor.patch_size) == (1, 5, 2)


def test_loaded_weights_are_those_saved(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    saved = model.state_dict()
    for model_class, prefix in ((HybridForPreTraining, ""), (HybridForImageGeneration, ""), (HybridModel, "encoder.")):
        loaded = model_class.from_pretrained(tmp_path).state_dict()
        for name, value in loaded.items():
            assert torch.equal(value, saved[prefix + name]), name


def test_safetensors_only_and_all_code_on_board(folders):
    files = set(os.listdir(folders[0]))
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    assert {"modeling_hybrid.py", "configuration_hybrid.py", "image_processing_hybrid.py", "info_nce.py"} <= files
    auto_map = json.loads((folders[0] / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    assert set(auto_map) == {"pil", "torchvision"}


@pytest.mark.parametrize("model_class", [*AUTO_CLASSES.values(), HybridForOutOfDistributionDetection])
def test_a_checkpoint_promises_no_class_whose_code_it_lacks(make_model, tmp_path, model_class):
    """Also where it comes from a checkpoint that promises more."""
    make_model().save_pretrained(tmp_path / "source")
    model_class.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "saved")
    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageClassification"} <= set(auto_map)
    assert {"AutoModelForPreTraining", "Objective"} <= set(auto_map) or model_class is not HybridForPreTraining
    for reference in auto_map.values():
        assert (tmp_path / "saved" / f"{reference.split('.')[0]}.py").exists(), reference


def test_another_process_with_the_package(folders, expected, run_python):
    output = run_python(
        OUTPUTS
        + COMPARE
        + f"""
import modeling_hybrid
result = outputs_of({str(folders[0])!r}, {str(folders[1])!r})
compare(result, {str(expected[1])!r})
from transformers import AutoModel, AutoModelForCausalLM, pipeline
assert type(AutoModel.from_pretrained({str(folders[0])!r})) is modeling_hybrid.HybridModel
print("all agree")
"""
    )
    assert "all agree" in output
    # Nothing was asked, nothing was found that no class wants.
    for word in ("custom code", "trust_remote_code", "UNEXPECTED", "MISSING", "not used when initializing"):
        assert word not in output, output


def test_another_process_without_the_package(folders, expected, run_python, tmp_path):
    """With `trust_remote_code=True`, and once more from what such a process saved."""
    again = [str(tmp_path / name) for name in ("again", "classifier_again")]
    output = run_python(
        OUTPUTS
        + COMPARE
        + f"""
folders, again = [{str(folders[0])!r}, {str(folders[1])!r}], {again!r}
compare(outputs_of(*folders, trust_remote_code=True), {str(expected[1])!r})
for auto_class, source, target in ((AutoModelForPreTraining, folders[0], again[0]),
                                   (AutoModelForImageClassification, folders[1], again[1])):
    auto_class.from_pretrained(source, trust_remote_code=True).save_pretrained(target)
    AutoImageProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(target)
compare(outputs_of(*again, trust_remote_code=True), {str(expected[1])!r})
from transformers import pipeline
images = [Image.fromarray(np.zeros((5, 5), np.uint8))]
assert np.shape(pipeline("image-feature-extraction", model=folders[0], pool=True, trust_remote_code=True)(images[0]))
assert len(pipeline("image-classification", model=folders[1], trust_remote_code=True)(images[0], top_k=7)) == 7
print("all agree")
""",
        package=False,
    )
    assert "all agree" in output
    assert "UNEXPECTED" not in output
    # The package reads it as well.
    result = outputs_of(*again)
    for name, value in expected[0].items():
        torch.testing.assert_close(result[name], value, msg=lambda text, name=name: f"{name}: {text}")


# The loss of every objective, from folders that carry its code.
OBJECTIVE_LOSSES = """
import torch
from transformers import AutoModelForPreTraining


def losses_of(root, names, **kwargs):
    torch.manual_seed(0)
    inputs = {
        "pixel_values": torch.rand(3, 6, 1, 4, 4) * 2 - 1,
        "view_kinds": torch.tensor([0, 1, 2]),
        "labels": torch.arange(6) % 3,
        "sample_ids": torch.arange(6),
        "boxes": torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 6, 4),
        "teacher": torch.linspace(-1, 1, 6)[:, None],
    }
    result = {}
    with torch.no_grad():
        for name in names:
            model = AutoModelForPreTraining.from_pretrained(f"{root}/{name}", **kwargs)
            result[name] = model.train()(**inputs).contrastive_loss, model(**inputs).contrastive_loss
    return result
"""


def test_every_objective_without_the_package(make_model, run_python, tmp_path):
    """In training mode, so that queues and states have to work as well."""
    small = {name: {"num_samples": 6} for name in ("isogclr", "meow")} | {"mochi": {"queue_size": 40, "num_hard": 8}}
    for name in OBJECTIVES:
        objective = {"name": name, **small.get(name, {})}
        make_model(objective=objective, num_view_kinds=3).save_pretrained(tmp_path / name)
    scope = {}
    exec(OBJECTIVE_LOSSES, scope)
    expected = scope["losses_of"](tmp_path, OBJECTIVES)
    torch.save(expected, tmp_path / "expected.pt")
    output = run_python(
        OBJECTIVE_LOSSES
        + f"""
found = losses_of({str(tmp_path)!r}, {list(OBJECTIVES)!r}, trust_remote_code=True)
for name, losses in torch.load({str(tmp_path / "expected.pt")!r}).items():
    torch.testing.assert_close(found[name], losses, msg=lambda text: name + text)
print("all agree")
""",
        package=False,
    )
    assert "all agree" in output
    assert all(losses[0].isfinite() for losses in expected.values())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import modeling_hybrid", "No module named 'modeling_hybrid'"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "was tried"),
    ],
)
def test_other_processes_have_no_package_and_no_network(run_python, code, message):
    with pytest.raises(AssertionError, match=message):
        run_python(code, package=False)


@pytest.fixture
def pictures():
    noise = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def test_feature_pipeline(folders, pictures):
    folder, _ = folders
    extract = pipeline("image-feature-extraction", model=str(folder), pool=True)
    features = torch.tensor(extract(pictures))
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        expected = model(**processor(pictures, return_tensors="pt")).pooler_output
    torch.testing.assert_close(features.flatten(0, 1), expected)


def test_classification_pipeline(folders, pictures):
    for folder, num_labels in zip(folders, (2, 7), strict=True):
        classify = pipeline("image-classification", model=str(folder))
        for answer in classify(pictures, top_k=num_labels):
            assert len(answer) == num_labels
            assert sum(entry["score"] for entry in answer) == pytest.approx(1)
            assert {entry["label"] for entry in answer} == {f"LABEL_{i}" for i in range(num_labels)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_pipelines_of_streams_in_batches(folders, pictures, dtype):
    """Ten images by fours, so that the last batch is not full, of every mode that files have."""
    images = [pictures[i % 3].convert(mode) for i, mode in enumerate(2 * ["RGB", "RGBA", "LA", "L", "P"])]
    extract = pipeline("image-feature-extraction", model=str(folders[0]), pool=True, return_tensors=True, dtype=dtype)
    classify = pipeline("image-classification", model=str(folders[1]), top_k=7, dtype=dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for one, image in zip(extract((image for image in images), batch_size=4), images, strict=True):
        torch.testing.assert_close(one, extract(image), **tolerance)
    for answer, image in zip(classify((image for image in images), batch_size=4), images, strict=True):
        alone = {entry["label"]: entry["score"] for entry in classify(image)}
        assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(alone, abs=tolerance["atol"])


def test_a_pipeline_refuses_another_size_than_the_model_has(folders, pictures):
    extract = pipeline("image-feature-extraction", model=str(folders[0]), pool=True)
    with pytest.raises(ValueError, match="pixel_values has shape"):
        extract(pictures[0], image_processor_kwargs={"size": {"height": 30, "width": 30}})


def test_saved_in_shards_and_in_half_precision(make_model, draw_images, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    x = draw_images(model.config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    torch.testing.assert_close(loaded.log_likelihood(x), model.log_likelihood(x))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert loaded.dtype is torch.bfloat16
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    torch.testing.assert_close(loaded.log_likelihood(x), model.log_likelihood(x), rtol=0.01, atol=0)
