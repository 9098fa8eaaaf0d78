"""Completions in three ways: what the judge and the likelihood say of them, and where they are not asked for."""

import pytest
import torch
from training_fixtures import load_splits_once, small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.patch_codes import levels_to_codes
from training.evaluation import judge
from training.evaluation.judge import train_judge
from training.evaluation.questions import completions
from training.evaluation.subject import Subject


pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = ("sampled", "greedy", "searched")


@pytest.fixture
def subject(tmp_path):
    def build(**overrides) -> Subject:
        config = small_config(tmp_path, evaluation__batch_size=16, evaluation__max_images=40, **overrides)
        model = HybridForPreTraining(config.model_config()).eval()
        splits = load_splits_once(config.data, model.config)
        return Subject(model, HybridImageProcessor.from_config(model.config), config, splits, tmp_path)

    return build


def test_true_lower_halves_are_as_good_as_the_images(subject, monkeypatch):
    subject = subject(model__patch_size=1)
    monkeypatch.setattr(judge, "NUM_STEPS", 40)
    found = completions.evaluate(subject)
    again = completions.evaluate(subject)
    assert found.results == again.results and found.num_images == {"completed images": 40}
    of_training = (subject.levels["train"], subject.labels["train"], 17, torch.device("cpu"))
    taken_for = train_judge(*of_training)(levels_to_pixels(subject.levels["test"], 17)).argmax(dim=1)
    accuracy = (taken_for.numpy() == subject.labels["test"]).mean()
    assert found.results["true_completion_accuracy"] == accuracy > 0.4
    codes = levels_to_codes(subject.levels["test"], subject.model.config)
    with torch.no_grad():
        nats = subject.model.nll_map(codes=codes)
    assert found.results["true_completion_nats"] == pytest.approx(nats[:, 32:].sum(dim=1).mean().item(), rel=1e-4)
    assert found.results["greedy_completion_nats"] < found.results["sampled_completion_nats"]

    in_turn = [batch for batch in codes.split(16) for _ in WAYS]
    asked = []

    def true_ones(pixel_values, num_rows, generator, **arguments):
        asked.append((num_rows, *arguments))
        return in_turn[len(asked) - 1]

    monkeypatch.setattr(subject.model, "generate", true_ones)
    ideal = completions.evaluate(subject).results
    assert asked[:3] == [(4, "temperature"), (4, "do_sample"), (4, "penalty_alpha", "top_k")]
    for way in WAYS:
        for key in ("completion_nats", "completion_accuracy"):
            assert ideal[f"{way}_{key}"] == ideal[f"true_{key}"] == found.results[f"true_{key}"]


def test_mean_cosine_against_the_loop():
    states = torch.randn(2, 4, 3)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    cosines = [torch.cosine_similarity(states[:, i], states[:, j], dim=1) for i, j in pairs]
    torch.testing.assert_close(completions.mean_cosine(states), torch.stack(cosines).mean(dim=0))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model__patch_size": 1, "data__label_column": "null"},
        {"model__patch_size": 1, "model__generative_weight": 0, "model__encoder_attention": "bidirectional"},
    ],
)
def test_not_asked_of_larger_patches_without_labels_or_a_likelihood(subject, overrides):
    assert completions.evaluate(subject(**overrides)).results == {}
