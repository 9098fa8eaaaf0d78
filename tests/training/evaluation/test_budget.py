"""The time and memory that an evaluation may take: fewer images where these are large, and it says of how many."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from training_fixtures import ROOT, load_splits_once, small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training.config import EvaluationConfig
from training.data.images import evenly
from training.evaluation import subject as subjects
from training.evaluation.questions import adversarial, health, out_of_distribution, robustness
from training.evaluation.subject import Subject
from training.evaluation.suite import evaluate_run


@pytest.fixture
def make_subject(tmp_path):
    """Builds a `Subject` of 100 digits of each split and an untrained model."""

    def make(**overrides):
        config = small_config(
            tmp_path, **{"data__validation_fraction": 0.3, "evaluation__max_images": 100, **overrides}
        )
        torch.manual_seed(0)
        model = HybridForPreTraining(config.model_config()).eval()
        splits = load_splits_once(config.data, model.config)
        return Subject(model, HybridImageProcessor.from_config(model.config), config, splits, tmp_path)

    return make


@pytest.mark.parametrize(
    ("max_subpixels", "taken"),
    [(0, 90), (64 * 1000, 90), (64 * 40, 40), (64 * 40 + 63, 40), (1, subjects.LEAST_IMAGES)],
)
def test_slow_questions_take_fewer_large_images(make_subject, max_subpixels, taken):
    subject = make_subject(evaluation__max_subpixels=max_subpixels)
    assert subject.affordable(90) == taken
    # Never more than asked for.
    assert subject.affordable(5) == 5 and subject.affordable(0) == 0


def test_the_digits_are_small_enough_for_every_question(make_subject):
    default = EvaluationConfig()
    subject = make_subject(evaluation__max_subpixels=default.max_subpixels)
    assert subject.affordable(default.num_out_of_distribution) == default.num_out_of_distribution
    assert subject.affordable(default.num_scored_samples) == default.num_scored_samples
    assert subject.batch_size == default.batch_size


def test_large_images_are_held_few_at_a_time(make_subject, monkeypatch):
    subject = make_subject()
    whole = subject.embed(subject.levels["test"], with_likelihood=True)
    monkeypatch.setattr(subjects, "HELD_SUBPIXELS", 64 * 7)
    assert subject.batch_size == 7
    parts = subject.embed(subject.levels["test"], with_likelihood=True)
    np.testing.assert_allclose(parts.features, whole.features, atol=1e-5)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5)
    monkeypatch.setattr(subjects, "HELD_SUBPIXELS", 1)
    assert subject.batch_size == 1


def test_what_was_asked_of_how_many_is_told(make_subject, monkeypatch):
    subject = make_subject(evaluation__max_subpixels=64 * 40, evaluation__num_out_of_distribution=50)
    for question, kept in ((robustness, "corrupted_correct"), (adversarial, "adversarial_correct")):
        findings = question.evaluate(subject)
        assert findings.num_images == {"test": 40}
        tried = np.flatnonzero(~np.isnan(findings.per_image[kept]))
        np.testing.assert_array_equal(tried, evenly(100, 40))
    findings = out_of_distribution.evaluate(subject)
    assert set(findings.num_images.values()) == {40} and len(findings.per_image["ood/noise/combined"]) == 40
    assert len(findings.per_image["ood/test/combined"]) == 100

    assert health.evaluate(subject).num_images == {"validation": 256, "validation, gradients": 256}
    monkeypatch.setattr(health, "MAX_GRADIENT_SUBPIXELS", 2 * 64 * 30)
    few = health.evaluate(subject)
    assert few.num_images == {"validation": 256, "validation, gradients": 30}
    assert -1 <= few.results["gradient_cosine"] <= 1


def test_the_results_say_of_how_many_images(make_subject, tmp_path):
    subject = make_subject(
        evaluation__suite="[likelihood,out_of_distribution]",
        evaluation__max_subpixels=64 * 40,
        evaluation__num_out_of_distribution=50,
    )
    checkpoint = tmp_path / "model"
    for part in (subject.model, subject.image_processor):
        part.save_pretrained(checkpoint)
    evaluate_run(checkpoint, subject.splits, subject.config, tmp_path, "a test")
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert results["num_images"] == {"train": 100, "validation": 100, "test": 100}
    (asked,) = results["num_images_by_question"].items()
    assert asked[0] == "out_of_distribution" and set(asked[1].values()) == {40}


def test_an_attack_asks_no_more_about_images_that_are_misled():
    """And leaves them as they are."""
    asked = []

    def victim(levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(levels))
        return (levels[:, 0] < 10).long(), -torch.ones(levels.shape)

    images = torch.tensor([[9], [8], [3], [12]])
    attacked = adversarial.attack(images, images, torch.ones(4, dtype=torch.long), victim, budget=4, num_levels=17)
    assert attacked.flatten().tolist() == [10, 10, 7, 12]
    assert asked[:4] == [4, 3, 2, 1] and asked[-1] == 1


@pytest.mark.slow
def test_memory_of_colour_images_with_256_levels(tmp_path):
    """600 images of 32x32 at default settings stay below 2 GB with all that is imported."""
    script = f"""
        import resource, sys
        from pathlib import Path
        import datasets, numpy as np, torch
        from PIL import Image
        from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
        from training.config import load_config
        from training.data.splits import load_splits
        from training.evaluation.suite import evaluate_run

        folder, draw = Path({str(tmp_path)!r}), np.random.default_rng(0)
        for split, size in (("train", 500), ("test", 100)):
            images = [Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(size)]
            rows = {{"image": images, "label": [i % 10 for i in range(size)]}}
            features = datasets.Features(
                {{"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}}
            )
            datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"data/{{split}}.parquet")
        config = load_config(
            "training/configs/rgb32.yaml",
            [f"data.dataset={{folder / 'data'}}", f"output_dir={{folder}}", "model.hidden_size=64"],
        )
        model_config = config.model_config()
        HybridForPreTraining(model_config).save_pretrained(folder / "model")
        HybridImageProcessor.from_config(model_config).save_pretrained(folder / "model")
        evaluate_run(folder / "model", load_splits(config.data, model_config), config, folder, "a test")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print("peak", peak)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("peak")[-1]) < 2e9
