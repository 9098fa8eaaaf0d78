"""Fine-tuning by `Trainer`: it learns, it keeps the best epoch, and what it saves is an ordinary classifier."""

import json

import evaluate
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from training_fixtures import finetune as run
from training_fixtures import load_splits_once, reset_accelerate, small_config
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from modeling_hybrid import HybridForImageClassification, HybridForPreTraining, HybridImageProcessor, HybridModel
from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN
from training.config import save_config
from training.data.images import LevelsDataset
from training.data.splits import digits
from training.data.views import Views
from training.embedding import embed
from training.evaluation.questions import finetuning
from training.evaluation.subject import Findings, Subject
from training.finetuning.classification import LabelledImages, metric, start_head


@pytest.fixture(scope="module")
def finetuned(run_folder):
    """The default output folder of one call, offline."""
    assert run(run_folder, "--num_train_epochs", 6, "--learning_rate", 1e-2) == 0
    return run_folder / "finetuned"


def test_it_learns_and_reports_both_splits(finetuned):
    results = json.loads((finetuned / "finetuning.json").read_text())
    assert results["test_accuracy"] > 0.4 and results["eval_accuracy"] > 0.4
    assert 0 < results["test_macro_f1"] <= 1


def test_the_epoch_that_is_best_on_validation_is_kept(finetuned):
    history = json.loads((finetuned / "trainer_state.json").read_text())["log_history"]
    losses = [row["eval_loss"] for row in history if "eval_loss" in row]
    # The last one is that of the epoch which is kept.
    assert len(losses) == 6 + 1 and losses[-1] == pytest.approx(min(losses))
    assert json.loads((finetuned / "finetuning.json").read_text())["eval_loss"] == pytest.approx(min(losses))


def test_it_starts_from_logistic_regression(run_folder):
    config = small_config(run_folder, data__validation_fraction=0.7)
    for kept in (range(10), (3, 7)):  # two classes have one row of coefficients
        model = HybridForImageClassification.from_pretrained(run_folder / "model", num_labels=10)
        table = load_splits_once(config.data, model.config, max_images=0).reference.table
        chosen = [i for i, label in enumerate(table["label"][:]) if label in kept]
        split = LevelsDataset(table.select(chosen), (1, 8, 8))
        levels, labels = split.all_levels(), split.labels()
        start_head(model, levels, labels)
        with torch.no_grad():
            logits = model(levels_to_pixels(levels, 17)).logits
        features = embed(model, levels, 256, with_likelihood=False).features
        probe = LogisticRegression(max_iter=500).fit(features, labels)
        probabilities = logits[:, list(kept)].softmax(-1).numpy()
        np.testing.assert_allclose(probabilities, probe.predict_proba(features), atol=1e-4)


def test_training_images_carry_the_tag_of_what_they_are(run_folder):
    config = small_config(run_folder, data__validation_fraction=0.7)
    split = load_splits_once(config.data, config.model_config(), max_images=0).reference
    levels, labels = split.all_levels(), split.labels()
    clean = LabelledImages(levels, labels, 17).__getitems__(list(range(200)))
    drawn = LabelledImages(levels, labels, 17, Views(config.augmentation, 8, 17)).__getitems__(list(range(200)))
    kinds = [item["view_kinds"].item() for item in drawn]
    assert set(kinds) == {CLEAN, AUGMENTED} and 60 < sum(kinds) < 140
    for before, after in zip(clean, drawn, strict=True):
        assert before["view_kinds"] == CLEAN and before["labels"] == after["labels"]
        difference = (before["pixel_values"] - after["pixel_values"]).abs().max()
        assert difference < 1e-6 if after["view_kinds"] == CLEAN else difference > 1e-2


def test_saved_model_is_an_ordinary_classifier(run_folder, finetuned):
    config = small_config(run_folder, data__validation_fraction=0.7)
    model = AutoModelForImageClassification.from_pretrained(finetuned).eval()
    assert model.config.id2label == {i: str(i) for i in range(10)}
    test = load_splits_once(config.data, model.config, max_images=0).test
    with torch.no_grad():
        predictions = model(test.all_levels().float() / 8 - 1).logits.argmax(-1)
    accuracy = (predictions.numpy() == test.labels()).mean()
    assert accuracy == pytest.approx(json.loads((finetuned / "finetuning.json").read_text())["test_accuracy"])

    processor = AutoImageProcessor.from_pretrained(finetuned)
    images = processor.pixels_to_images(test.all_levels()[:3].float() / 8 - 1)
    classify = pipeline("image-classification", model=str(finetuned), trust_remote_code=False, device="cpu")
    answers = [answer[0]["label"] for answer in classify(images)]
    assert answers == [str(prediction.item()) for prediction in predictions[:3]]


def test_the_evaluator_of_evaluate_takes_the_checkpoint_and_the_model(finetuned):
    # Of transformers 5 it takes no pipeline: it asks whether that is a TensorFlow model, a class which is gone.
    model = AutoModelForImageClassification.from_pretrained(finetuned)
    image_processor = AutoImageProcessor.from_pretrained(finetuned)
    test, labels = digits()["test"], model.config.label2id
    evaluator = evaluate.evaluator("image-classification")
    one = evaluator.compute(str(finetuned), test, metric=metric(), label_mapping=labels, device=-1)
    other = evaluator.compute(
        model, test, metric=metric(), label_mapping=labels, feature_extractor=image_processor, device=-1
    )
    expected = json.loads((finetuned / "finetuning.json").read_text())
    for key in ("accuracy", "macro_f1"):
        assert one[key] == other[key] == pytest.approx(expected[f"test_{key}"])


def test_frozen_encoder_stays_as_it_was(run_folder, tmp_path):
    assert run(run_folder, "--freeze_encoder", "--num_train_epochs", 1, "--output_dir", tmp_path) == 0
    before = HybridModel.from_pretrained(run_folder / "model").state_dict()
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.classifier.weight.abs().max() > 1e-2


def test_metric_is_loaded_without_a_network():
    results = metric().compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2])
    assert results == {"accuracy": 0.75, "macro_f1": pytest.approx((1 + 2 / 3 + 2 / 3) / 3)}


@pytest.fixture
def make_subject(run_folder, tmp_path):
    """Builds a `Subject` of the run, with values of the configuration overridden."""

    def make(**overrides):
        config = small_config(run_folder, data__validation_fraction=0.7, **overrides)
        model = HybridForPreTraining.from_pretrained(run_folder / "model").eval()
        image_processor = HybridImageProcessor.from_pretrained(run_folder / "model")
        splits = load_splits_once(config.data, model.config, max_images=0)
        reset_accelerate()
        return Subject(model, image_processor, config, splits, tmp_path)

    return make


def test_evaluator_finetunes_a_copy_and_leaves_nothing_behind(make_subject, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    subject = make_subject(evaluation__num_finetuning_steps=12)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    findings = finetuning.evaluate(subject)
    errors = ("ece", "brier", "nll")
    assert set(findings.results) == {
        *("finetuned_accuracy", "finetuned_temperature"),
        *(f"finetuned_{name}" for name in errors),
        *(f"finetuned_calibrated_{name}" for name in errors),
    }
    correct = findings.per_image["finetuned_correct"]
    assert correct.shape == subject.labels["test"].shape == (60,)
    assert findings.results["finetuned_accuracy"] == correct.mean() > 0.2
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not subject.model.training and all(value.requires_grad for value in subject.model.encoder.parameters())
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
    assert finetuning.evaluate(make_subject(evaluation__num_finetuning_steps=12)).results == findings.results


def test_evaluator_keeps_the_best_of_ten_measurements(make_subject, tmp_path):
    subject = make_subject(evaluation__num_finetuning_steps=20)
    trainer = finetuning.finetune(subject, tmp_path)
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 10 and trainer.state.global_step == 20
    logits = torch.from_numpy(finetuning.predict(trainer, subject, "validation"))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(subject.labels["validation"]))
    assert loss.item() == pytest.approx(min(losses), rel=1e-5)


def test_evaluator_does_nothing_without_steps_labels_or_a_process_of_its_own(make_subject, monkeypatch, caplog):
    assert finetuning.evaluate(make_subject()) == Findings()
    assert (
        finetuning.evaluate(make_subject(evaluation__num_finetuning_steps=2, data__label_column="null")) == Findings()
    )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert finetuning.evaluate(make_subject(evaluation__num_finetuning_steps=2)) == Findings()
    assert "evaluation.num_finetuning_steps=2 is skipped in a run of several processes" in caplog.text


def test_refusals(run_folder, finetuned, tmp_path, capsys):
    assert run(run_folder) == 1
    assert "holds a finished fine-tuning; choose another --output-dir" in capsys.readouterr().err
    assert run(tmp_path) == 1
    assert "name the configuration of the run with --config" in capsys.readouterr().err
    save_config(small_config(tmp_path, data__label_column="null"), tmp_path / "unlabelled.yaml")
    assert run(run_folder, "--config", tmp_path / "unlabelled.yaml", "--output_dir", tmp_path / "a") == 1
    assert "has no labels (data.label_column=None)" in capsys.readouterr().err
