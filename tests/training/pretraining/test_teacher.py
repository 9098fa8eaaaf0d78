"""What a teacher says of images, whatever network it is, and runs that learn from it."""

import pytest
import torch
from training_fixtures import log_lines, small_config, start, train_until, train_whole
from transformers import (
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor, HybridModel
from training.distill import main
from training.embedding import embed
from training.pretraining.teacher import teacher_features


DISTILLED = {"model__objective": "{name: crd}"}


@pytest.fixture(scope="module")
def levels():
    return torch.randint(17, (5, 1, 8, 8), dtype=torch.uint8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_config):
    """A folder with a small model of ours that nobody trained."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    model = HybridForPreTraining(tiny_config(image_size=8, num_levels=17))
    model.save_pretrained(folder)
    HybridImageProcessor.from_config(model.config).save_pretrained(folder)
    return folder


def standardised(rows: torch.Tensor) -> torch.Tensor:
    # Columns that never change become 0.
    return ((rows - rows.mean(dim=0)) / rows.std(dim=0, correction=0)).nan_to_num()


def test_our_own_checkpoint_sees_what_it_always_sees(teacher, levels):
    model = HybridForPreTraining.from_pretrained(teacher)
    expected = torch.from_numpy(embed(model, levels, 8, with_likelihood=False).features)
    some, all_ = teacher_features(str(teacher), model.config, levels[:4], levels)
    torch.testing.assert_close(some, standardised(expected[:4]), rtol=1e-3, atol=1e-4)
    # By mean and spread of the first.
    torch.testing.assert_close(all_[:4], some, rtol=1e-3, atol=1e-4)


def vit_config():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return ViTConfig(image_size=8, patch_size=4, **sizes)


def build_clip():
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config={"hidden_size": 8, "num_hidden_layers": 1}))


@pytest.mark.parametrize(
    ("build", "features"),
    [
        (lambda: ViTModel(vit_config()), lambda model, pixels: model(pixels).pooler_output),
        # Its checkpoint has no pooler.
        (
            lambda: ViTForImageClassification(vit_config()),
            lambda model, pixels: model.vit(pixels).last_hidden_state.mean(dim=1),
        ),
        (
            lambda: ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])),
            lambda model, pixels: model(pixels).pooler_output.flatten(1),
        ),
        (build_clip, lambda model, pixels: model.vision_model(pixels).pooler_output),
    ],
    ids=["pooler", "no pooler", "maps", "images and text"],
)
def test_image_models_of_transformers(tmp_path, levels, tiny_config, build, features):
    torch.manual_seed(2)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(tmp_path)
    (found,) = teacher_features(str(tmp_path), tiny_config(image_size=8, num_levels=17), levels)
    # 17 levels as 256, as a picture has them.
    pixels = (levels * (255 / 16)).round() / 255 * 2 - 1
    with torch.no_grad():
        expected = standardised(features(model, pixels.expand(-1, 3, -1, -1)))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_column_that_never_changes_stays_silent(tmp_path, levels, tiny_config):
    model = HybridModel(tiny_config(image_size=8, num_levels=17))
    model.save_pretrained(tmp_path)
    HybridImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    (found,) = teacher_features(str(tmp_path), model.config, levels[:1].expand(4, -1, -1, -1))
    assert (found == 0).all()


def test_what_is_no_teacher_is_named(tmp_path, levels, tiny_config):
    with pytest.raises(ValueError, match=r"data.teacher='.*' is neither 'imagenet' nor an image model"):
        teacher_features(str(tmp_path), tiny_config(), levels)


def test_a_step_and_a_validation_ask_for_their_own_images(tmp_path, teacher):
    run = start(small_config(tmp_path, data__teacher=teacher, **DISTILLED))
    assert run.bare_model.objective.teacher_size == run.teacher["train"].shape[1]
    max_images = run.config.evaluation.max_images
    splits = run.splits.train.all_levels(), run.splits.validation.all_levels(max_images)
    expected = teacher_features(str(teacher), run.bare_model.config, *splits)
    torch.testing.assert_close([run.teacher["train"], run.teacher["validation"]], expected)
    ids = torch.tensor([3, 1])
    assert torch.equal(run.inputs(splits[0][ids], ids)["teacher"], run.teacher["train"][ids])


def test_a_run_with_a_teacher_resumes_exactly(tmp_path, teacher, monkeypatch):
    whole, killed = (small_config(tmp_path / name, data__teacher=teacher, **DISTILLED) for name in ("whole", "killed"))
    train_whole(whole)
    train_until(killed, 6, monkeypatch)
    train_whole(killed)
    weights = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    first, *_, last = (row["distance_from_teacher"] for row in log_lines(tmp_path / "whole") if "learning_rate" in row)
    assert last < first


def test_the_command_is_a_pretraining_with_a_teacher(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("training.pretrain.pretrain", lambda config, command: told.append((config, command)))
    overrides = ["training/configs/digits.yaml", f"output_dir={tmp_path}", "--teacher", "imagenet"]
    assert main(overrides) == 0 and main([*overrides, "model.objective={name: feature_regression, weight: 2}"]) == 0
    (config, text), (other, _) = told
    assert config.data.teacher == "imagenet" and config.model_config().objective["name"] == "crd"
    assert text.startswith("python -m training.distill training/configs/digits.yaml")
    assert other.model_config().objective == {"name": "feature_regression", "weight": 2, "teacher_size": 1}
