"""The `evaluate` modules: each loads from its folder, in one go and batch by batch, and says what others say."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from sklearn import metrics

from modeling_hybrid import HybridForImageGeneration
from modeling_hybrid.objectives.telemetry import effective_rank


METRICS = Path(__file__).parents[3] / "training" / "metrics"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Else it waits for modules of the same name, whoever holds them."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def compute(name: str, batches: list[dict], **arguments) -> dict[str, float]:
    """The results of all batches; the same whether they come one by one or joined."""
    module = evaluate.load(str(METRICS / name))
    for batch in batches:
        module.add_batch(**batch)
    found = module.compute(**arguments)
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    assert module.compute(**joined, **arguments) == found
    return found


def test_classification():
    generator = np.random.default_rng(0)
    references = generator.integers(0, 4, 60)
    predictions = np.where(generator.random(60) < 0.6, references, generator.integers(0, 4, 60))
    batches = [
        {"predictions": predictions[part], "references": references[part]} for part in (slice(25), slice(25, 60))
    ]
    assert compute("classification", batches) == {
        "accuracy": pytest.approx((predictions == references).mean()),
        "macro_f1": pytest.approx(metrics.f1_score(references, predictions, average="macro")),
    }


@torch.no_grad()
def test_bits_per_dim_is_that_of_the_model(make_model, draw_images):
    model = make_model(HybridForImageGeneration)
    batches = [draw_images(model.config, num) for num in (5, 2)]
    found = compute(
        "bits_per_dim", [{"nll": -model.log_likelihood(x).numpy()} for x in batches], num_dims=model.config.num_dims
    )
    assert found == {"bits_per_dim": pytest.approx(model.bits_per_dim(torch.cat(batches)).mean().item(), rel=1e-6)}


def test_bits_per_dim_of_uniform_images():
    """256 equally probable levels take 8 bits."""
    assert compute("bits_per_dim", [{"nll": [12 * math.log(256)] * 3}], num_dims=12)["bits_per_dim"] == pytest.approx(8)
    module = evaluate.load(str(METRICS / "bits_per_dim"))
    with pytest.raises(ValueError, match="num_dims=0"):
        module.compute(nll=[1.0], num_dims=0)


@pytest.mark.parametrize("num_inside", [20, 97, 200])
def test_out_of_distribution_is_that_of_scikit_learn(num_inside):
    generator = np.random.default_rng(0)
    is_foreign = generator.permutation(np.repeat([False, True], [num_inside, 60]))
    # Rounded, so that scores are equal now and then.
    scores = (generator.normal(size=len(is_foreign)) + 1.5 * is_foreign).round(1)
    batches = [{"scores": scores[part], "is_foreign": is_foreign[part]} for part in (slice(30), slice(30, None))]
    found = compute("out_of_distribution", batches)
    # Accepting an image of the data is the true positive.
    fpr, tpr, _ = metrics.roc_curve(~is_foreign, -scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(fpr[tpr >= 0.95][0])
    assert 0 < found["fpr95"] < 1
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(is_foreign, scores))


@pytest.mark.parametrize("is_foreign", [[True, True], [False, False]])
def test_out_of_distribution_needs_images_of_both_kinds(is_foreign):
    module = evaluate.load(str(METRICS / "out_of_distribution"))
    with pytest.raises(ValueError, match="of 2 images, expected at least one"):
        module.compute(scores=[0.0, 1.0], is_foreign=is_foreign)


def test_effective_rank():
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    found = compute("effective_rank", [{"features": features[:20]}, {"features": features[20:]}])["effective_rank"]
    assert found == pytest.approx(effective_rank(torch.from_numpy(features)).item())
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = singular / singular.sum()
    assert found == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    # Four equal singular values, and one alone.
    assert compute("effective_rank", [{"features": np.eye(4)}])["effective_rank"] == pytest.approx(4)
    assert compute("effective_rank", [{"features": np.ones((5, 3))}])["effective_rank"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["bits_per_dim", "out_of_distribution", "effective_rank"])
def test_cards_show_what_runs(name):
    card = SpaceCard.load(METRICS / name / "README.md")
    assert card.data.tags == ["evaluate", "metric"]
    snippet = card.text.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(snippet.replace(f'"{name}"', repr(str(METRICS / name))), scope)
    assert f"`{scope['results']}`" in card.text


def test_modules_load_without_a_network(run_python):
    folders = [str(path) for path in METRICS.iterdir()]
    assert len(folders) == 5
    run_python(f"import evaluate\nfor folder in {folders!r}:\n    evaluate.load(folder)")
