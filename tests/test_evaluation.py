"""Probes, foreign sets and scores against cases whose answer is known."""

import json

import numpy as np
import pytest
import torch

from modeling_hybrid import HybridConfig, HybridForPreTraining
from training.evaluation.embedding import Embedding, embed
from training.evaluation.foreign_sets import foreign_sets
from training.evaluation.out_of_distribution import compare_scores, separation
from training.evaluation.probes import Labelled, few_shot, linear, nearest_neighbours
from training.summarize import summarize


def blobs(num_images: int, seed: int, spread: float = 0.1) -> Labelled:
    """Three classes around three corners of a cube, in 8 dimensions."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, num_images)
    centres = np.eye(3, 8)
    return Labelled(centres[labels] + spread * generator.normal(size=(num_images, 8)), labels)


def test_probes_read_separable_classes_and_not_noise():
    splits = blobs(300, 0), blobs(100, 1), blobs(100, 2)
    assert linear(*splits) == 1.0
    assert nearest_neighbours(*splits) == 1.0
    mean, std = few_shot(*splits, num_shots=5, num_draws=3)
    assert mean > 0.95 and std < 0.05

    shuffled = [Labelled(part.features, np.random.default_rng(3).permutation(part.labels)) for part in splits]
    assert linear(*shuffled) < 0.6
    assert nearest_neighbours(*shuffled) < 0.6


def test_probes_choose_on_validation_and_never_see_test_labels():
    train, validation, test = blobs(300, 0, 1.0), blobs(100, 1, 1.0), blobs(100, 2, 1.0)
    wrong = Labelled(test.features, (test.labels + 1) % 3)
    for probe in (linear, nearest_neighbours):
        right, flipped = probe(train, validation, test), probe(train, validation, wrong)
        assert right > 0.5 > flipped


def test_few_shot_draws_the_same_images_for_every_feature():
    train, validation, test = blobs(300, 0, 0.8), blobs(100, 1, 0.8), blobs(100, 2, 0.8)
    rotated = [Labelled(part.features @ np.eye(8)[::-1], part.labels) for part in (train, validation, test)]
    assert few_shot(train, validation, test, 3, 4) == pytest.approx(few_shot(*rotated, 3, 4), abs=1e-9)


def random_levels(num_images: int, num_channels: int = 1, num_levels: int = 17) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, num_levels, (num_images, num_channels, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_foreign_sets_keep_shape_and_levels_and_change_what_they_name(num_channels):
    levels = random_levels(20, num_channels)
    sets = foreign_sets(levels, num_levels=17, num_images=12)
    again = foreign_sets(levels, num_levels=17, num_images=12)
    assert len(sets) >= 6
    for name, images in sets.items():
        assert images.shape == (12, num_channels, 8, 8), name
        assert images.dtype == torch.uint8 and images.max() <= 16, name
        assert torch.equal(images, again[name]), name
        # No image of a set is an image of the data.
        assert not (images[:, None] == levels[None]).flatten(2).all(-1).any(), name
    assert (sets["constant"].flatten(2).amax(-1) == sets["constant"].flatten(2).amin(-1)).all()
    # Shuffling blocks keeps every pixel, and only moves it.
    source = levels.flatten(1).sort(1).values
    shuffled = sets["shuffled_blocks"].flatten(1).sort(1).values
    assert (shuffled[:, None] == source[None]).all(-1).any(1).all()


def embeddings(num_images: int, shift: float = 0, nats: float = 0, with_likelihood: bool = True, seed: int = 0):
    """Features around `shift` in every dimension, negative log-likelihoods around `nats`, all with spread one."""
    generator = np.random.default_rng(seed)
    features = generator.normal(shift, 1, (num_images, 5))
    return Embedding(features, generator.normal(nats, 1, num_images) if with_likelihood else None)


def test_far_features_and_unlikely_images_are_stranger():
    splits = {name: embeddings(200, seed=seed) for seed, name in enumerate(("train", "validation", "test"))}
    foreign = {
        "far": embeddings(200, shift=3, seed=3),
        "unlikely": embeddings(200, nats=4, seed=4),
        "same": embeddings(200, seed=5),
    }
    results = compare_scores(splits, foreign).figures
    auroc, fpr95 = results["ood_auroc_by_set"], results["ood_fpr95_by_set"]
    for name, seen_by, not_seen_by in (("far", "feature", "likelihood"), ("unlikely", "likelihood", "feature")):
        assert auroc[name][seen_by] > 0.95 and auroc[name][not_seen_by] == pytest.approx(0.5, abs=0.1)
        assert fpr95[name][seen_by] < 0.1 and fpr95[name][not_seen_by] == pytest.approx(0.95, abs=0.06)
        assert auroc[name]["combined"] > 0.9
    assert all(value == pytest.approx(0.5, abs=0.1) for value in auroc["same"].values())

    keys = {"ood_auroc": (auroc, "combined"), "ood_auroc_likelihood": (auroc, "likelihood")}
    keys |= {"ood_auroc_feature": (auroc, "feature"), "ood_fpr95": (fpr95, "combined")}
    assert set(results) == {*keys, "ood_auroc_by_set", "ood_fpr95_by_set"}
    for key, (by_set, kind) in keys.items():
        assert results[key] == pytest.approx(np.mean([by_set[name][kind] for name in foreign])), key


def test_scores_without_likelihood_are_the_feature_alone():
    splits = {
        name: embeddings(50, seed=seed, with_likelihood=False)
        for seed, name in enumerate(("train", "validation", "test"))
    }
    results = compare_scores(splits, {"far": embeddings(50, shift=1, seed=3, with_likelihood=False)}).figures
    assert set(results["ood_auroc_by_set"]["far"]) == set(results["ood_fpr95_by_set"]["far"]) == {"feature", "combined"}
    assert results["ood_auroc"] == results["ood_auroc_feature"] and "ood_auroc_likelihood" not in results


def test_separation_names_every_score():
    inside = {"one": np.arange(20.0), "other": np.zeros(20)}
    outside = {"one": np.array([18.0, 18.5, 30.0, -1.0]), "other": np.ones(4)}
    # 95% of the images inside, 19 of 20, score at most 18.
    assert separation(inside, outside) == {
        "auroc": {"one": pytest.approx((18.5 + 19 + 20 + 0) / 80), "other": 1.0},
        "fpr95": {"one": 0.5, "other": 0.0},
    }


def test_embedding_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model = HybridForPreTraining(HybridConfig.from_size("tiny", hidden_dropout=0.1))
    levels = random_levels(10)
    one, other = embed(model, levels, batch_size=3), embed(model, levels, batch_size=10)
    np.testing.assert_allclose(one.features, other.features, atol=1e-5)
    np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5)
    assert embed(model, levels, 10, with_likelihood=False).nll is None


def test_summary_of_seeds(tmp_path):
    folders = [tmp_path / str(seed) for seed in range(3)]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        results = {"seed": seed, "linear_accuracy": 0.9 + 0.01 * seed, "pixel_linear_accuracy": 0.8}
        (folder / "evaluation.json").write_text(json.dumps(results))
    table = summarize(folders)
    assert "| linear probe accuracy | 0.910 ± 0.010 | 0.800 ± 0.000 |" in table
    assert "bits" not in table
    for wrong, said in (([folders[0]], "two finished runs"), ([folders[0], folders[0]], "equal seed")):
        with pytest.raises(ValueError, match=said):
            summarize(wrong)
    with pytest.raises(ValueError, match="nowhere"):
        summarize([folders[0], tmp_path / "nowhere"])
