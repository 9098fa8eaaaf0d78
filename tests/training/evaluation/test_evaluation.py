"""Probes, foreign sets and scores against cases whose answer is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_fixtures import GivenRows

from modeling_hybrid import HybridConfig, HybridForPreTraining
from modeling_hybrid.levels import levels_to_pixels
from training.config import DataConfig, EvaluationConfig
from training.data.splits import load_splits
from training.embedding import Embedding, embed
from training.evaluation.foreign_sets import FAR, NEAR, foreign_sets
from training.evaluation.probes import Labelled, few_shot, fit_linear, is_correct, nearest_neighbours
from training.evaluation.questions import discrimination
from training.evaluation.questions.out_of_distribution import (
    all_scores,
    compare_scores,
    distance_from_typical,
    excess_over_png,
    neighbour_distance,
    pooled_by_group,
    separation,
)
from training.summarize import summarize


def blobs(num_images: int, seed: int, spread: float = 0.1) -> Labelled:
    """Three classes around three corners of a cube, in 8 dimensions."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, num_images)
    centres = np.eye(3, 8)
    return Labelled(centres[labels] + spread * generator.normal(size=(num_images, 8)), labels)


def linear(train: Labelled, validation: Labelled, test: Labelled) -> np.ndarray:
    return is_correct(fit_linear(train, validation), test)


def test_probes_read_separable_classes_and_not_noise():
    splits = blobs(300, 0), blobs(100, 1), blobs(100, 2)
    assert linear(*splits).all() and nearest_neighbours(*splits).all()
    correct = few_shot(*splits, num_shots=5, num_draws=3)
    assert correct.shape == (3, 100) and correct.mean() > 0.95 and correct.mean(axis=1).std() < 0.05

    shuffled = [Labelled(part.features, np.random.default_rng(3).permutation(part.labels)) for part in splits]
    assert linear(*shuffled).mean() < 0.6
    assert nearest_neighbours(*shuffled).mean() < 0.6


def test_probes_choose_on_validation_and_never_see_test_labels():
    train, validation, test = blobs(300, 0, 1.0), blobs(100, 1, 1.0), blobs(100, 2, 1.0)
    wrong = Labelled(test.features, (test.labels + 1) % 3)
    for probe in (linear, nearest_neighbours):
        right, flipped = probe(train, validation, test), probe(train, validation, wrong)
        assert right.mean() > 0.5 > flipped.mean()


def test_few_shot_draws_the_same_images_for_every_feature():
    train, validation, test = blobs(300, 0, 0.8), blobs(100, 1, 0.8), blobs(100, 2, 0.8)
    rotated = [Labelled(part.features @ np.eye(8)[::-1], part.labels) for part in (train, validation, test)]
    one, other = few_shot(train, validation, test, 3, 4), few_shot(*rotated, 3, 4)
    # Up to an image on the border of two classes: the columns are summed in another order.
    assert (one != other).mean() < 0.01
    assert (one != few_shot(train, validation, test, 3, 4, seed=1)).mean() > 0.05


def test_few_shot_takes_all_images_of_a_small_class():
    train, validation, test = blobs(40, 0, 0.3), blobs(100, 1, 0.3), blobs(100, 2, 0.3)
    every_draw = few_shot(train, validation, test, num_shots=100, num_draws=3)
    probe = fit_linear(train, validation)
    assert (every_draw != is_correct(probe, test)).mean() < 0.02  # the rows are summed in another order


def test_accuracies_are_means_of_what_is_kept_of_each_image(tmp_path):
    sizes = {"train": 120, "validation": 60, "test": 80}
    splits = {name: blobs(size, seed, 0.6) for seed, (name, size) in enumerate(sizes.items())}
    features = {name: part.features for name, part in splits.items()}
    subject = GivenRows(
        features=features,
        pixels={name: np.random.default_rng(0).normal(size=rows.shape) for name, rows in features.items()},
        random_features={name: rows[:, :2] for name, rows in features.items()},
        labels={name: part.labels for name, part in splits.items()},
        config=SimpleNamespace(evaluation=EvaluationConfig(num_shots=4, further_num_shots=[20, 1], num_draws=3)),
        splits=SimpleNamespace(class_names=None),
        pictures=tmp_path,
    )
    findings = discrimination.evaluate(subject)
    names = ("linear_accuracy", "knn_accuracy", "few_shot_accuracy", "few_shot_std", "few_shot_accuracy_by_shots")
    assert set(findings.results) == {f"{prefix}{name}" for prefix in ("", "pixel_", "random_") for name in names}
    by_shots = findings.results["few_shot_accuracy_by_shots"]
    assert list(by_shots) == ["1", "4", "20"] and by_shots["1"] < by_shots["20"]
    assert by_shots["4"] == findings.results["few_shot_accuracy"] > 0.5 > findings.results["pixel_few_shot_accuracy"]
    means = {name: values.mean() for name, values in findings.per_image.items()}
    accuracies = (findings.results["knn_accuracy"], findings.results["few_shot_accuracy"])
    assert (means["knn_correct"], means["few_shot_correct"]) == pytest.approx(accuracies)
    assert all(values.shape == (80,) for values in findings.per_image.values())

    subject.labels = None
    assert discrimination.evaluate(subject).results == {} and (tmp_path / "features.png").exists()


def random_levels(num_images: int, num_channels: int = 1, num_levels: int = 17) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, num_levels, (num_images, num_channels, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_foreign_sets_keep_shape_and_levels_and_change_what_they_name(num_channels):
    levels = random_levels(20, num_channels)
    sets = foreign_sets(levels, num_levels=17, num_images=12)
    again = foreign_sets(levels, num_levels=17, num_images=12)
    assert sorted(sets) == sorted([*NEAR, *FAR])
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


def test_shapes_are_smooth_around_one_flat_figure():
    shapes = foreign_sets(random_levels(30, 3), num_levels=256, num_images=30)["shapes"].float()
    assert shapes.flatten(1).std(1).min() > 0 and shapes.flatten(1)[:, 0].unique().numel() > 10
    # Edges of the figure are few: nearly all neighbours differ by less than noise does.
    steps = shapes.diff(dim=-1).abs()
    assert steps.median() < 20


def test_digits_are_not_foreign_to_digits():
    for size, num_levels in ((8, 17), (16, 256)):
        model = HybridConfig(image_size=size, patch_size=2, num_channels=1, num_levels=num_levels)
        splits = load_splits(DataConfig(dataset="digits"), model, max_images=10)
        levels = splits.test.all_levels(5)
        assert "digits" not in foreign_sets(levels, num_levels, num_images=5)
        assert "digits" in foreign_sets(num_levels - 1 - levels, num_levels, num_images=5)


def embeddings(num_images: int, shift: float = 0, nats: float = 0, with_likelihood: bool = True, seed: int = 0):
    """Features `shift` away in every dimension, negative log-likelihoods around `nats`, all with spread one."""
    generator = np.random.default_rng(seed)
    features = generator.normal(np.array([5, -5, 5, -5, 5]) + shift, 1, (num_images, 5))
    return Embedding(features, features, generator.normal(nats, 1, num_images) if with_likelihood else None)


def compare(foreign: dict[str, Embedding], with_likelihood: bool = True) -> dict:
    """The results of `foreign` beside three splits of the same kind of images."""
    splits = [embeddings(1000, with_likelihood=with_likelihood, seed=seed) for seed in range(3)]
    scored = {"test": splits[2], **foreign}
    # All equally complex.
    levels = {name: torch.zeros(len(e.features), 1, 8, 8, dtype=torch.uint8) for name, e in scored.items()}
    return compare_scores(all_scores(*splits[:2], scored, levels)).results


def test_far_features_and_unlikely_images_are_stranger():
    foreign = {
        "noise": embeddings(1000, shift=3, seed=3),
        "blended": embeddings(1000, nats=8, seed=4),
        "rotated": embeddings(1000, seed=5),
        "constant": embeddings(1000, nats=-8, seed=6),
    }
    results = compare(foreign)
    auroc, fpr95 = results["ood_auroc_by_set"], results["ood_fpr95_by_set"]
    seen = {"noise": {"feature", "knn"}, "blended": {"likelihood", "typicality", "complexity"}, "rotated": set()}
    seen["constant"] = {"typicality"}
    for name, kinds in auroc.items():
        for kind in kinds.keys() - {"combined"}:
            if name == "constant" and kind in ("likelihood", "complexity"):
                # Far too likely: nothing is less strange to them.
                assert auroc[name][kind] < 0.05
            elif kind in seen[name]:
                assert auroc[name][kind] > 0.95 and fpr95[name][kind] < 0.1, (name, kind)
            else:
                assert auroc[name][kind] == pytest.approx(0.5, abs=0.1), (name, kind)
                assert fpr95[name][kind] == pytest.approx(0.95, abs=0.06), (name, kind)
    assert auroc["noise"]["combined"] > 0.9 and auroc["blended"]["combined"] > 0.9

    for figure, by_set in (("auroc", auroc), ("fpr95", fpr95)):
        groups = {"near": ("blended", "rotated"), "far": ("noise", "constant"), "all": tuple(foreign)}
        means = results[f"ood_{figure}_by_group"]
        assert set(means) == set(groups)
        for group, names in groups.items():
            for kind in auroc["noise"]:
                assert means[group][kind] == pytest.approx(np.mean([by_set[name][kind] for name in names]))
    means = results["ood_auroc_by_group"]
    flat = {"ood_auroc": means["all"]["combined"], "ood_fpr95": results["ood_fpr95_by_group"]["all"]["combined"]}
    flat |= {f"ood_auroc_{kind}": value for kind, value in means["all"].items() if kind != "combined"}
    flat["ood_auroc_best_score"] = max(means["all"].values())
    for group in ("near", "far"):
        flat[f"ood_auroc_{group}"] = means[group]["combined"]
        flat[f"ood_fpr95_{group}"] = results["ood_fpr95_by_group"][group]["combined"]
    nested = {f"ood_{figure}_by_{what}" for figure in ("auroc", "fpr95") for what in ("set", "group")}
    assert set(results) == {*flat, *nested}
    for key, value in flat.items():
        assert results[key] == value, key


def test_scores_without_likelihood_are_those_of_the_feature():
    results = compare({"shapes": embeddings(200, shift=1, seed=3, with_likelihood=False)}, with_likelihood=False)
    kinds = {"feature", "combined", "knn"}
    assert set(results["ood_auroc_by_set"]["shapes"]) == set(results["ood_fpr95_by_set"]["shapes"]) == kinds
    assert results["ood_auroc"] == results["ood_auroc_feature"] and "ood_auroc_likelihood" not in results
    # There is no near set to take a mean over.
    assert set(results["ood_auroc_by_group"]) == {"far", "all"} and "ood_auroc_near" not in results


def test_every_score_of_every_set_is_kept_for_paired_comparisons():
    scores = {name: {"combined": np.arange(3.0) + i} for i, name in enumerate(("test", "noise", "dimmed", "shapes"))}
    findings = compare_scores(scores)
    assert set(findings.per_image) == {f"ood/{name}/combined" for name in scores}
    assert findings.per_image["ood/dimmed/combined"] is scores["dimmed"]["combined"]
    pooled = {group: values["combined"].tolist() for group, values in pooled_by_group(scores).items()}
    assert pooled == {"near": [2, 3, 4], "far": [1, 2, 3, 3, 4, 5], "all": [1, 2, 3, 2, 3, 4, 3, 4, 5]}


def test_distance_from_neighbours_compares_directions():
    train = np.array([[2.0, 0.0], [0.0, 0.5], [-3.0, 0.0]])
    distances = neighbour_distance(train, np.array([[1.0, 0.0], [0.0, -7.0], [1.0, 1.0]]))
    np.testing.assert_allclose(distances, [0, 2**0.5, (2 - 2**0.5) ** 0.5], atol=1e-12)
    # Of 3,000 images, the third nearest counts.
    angles = np.arange(3000) / 1000
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(neighbour_distance(circle, circle[:1]), 2 * np.sin(0.001), rtol=1e-6)


def test_too_likely_is_as_far_from_typical_as_too_unlikely():
    np.testing.assert_allclose(distance_from_typical(np.array([4.0, 8.0]), np.array([6.0, 9.0, 3.0])), [0, 3, 3])


@pytest.mark.parametrize("num_channels", [1, 3])
def test_complexity_is_taken_off_the_bits_of_an_image(num_channels):
    noise = random_levels(1, num_channels)
    plain = torch.zeros_like(noise)
    levels = torch.cat([noise, plain, plain])
    excess = excess_over_png(np.log(2) * np.array([1000.0, 1000.0, 900.0]), levels)
    # Equally likely, the plain image is the stranger one; a bit less of the model is a bit less of excess.
    assert excess[1] > excess[0] + 100
    assert excess[1] - excess[2] == pytest.approx(100)
    assert (1000 - excess[0]) % 8 == pytest.approx(0, abs=1e-9)


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


@pytest.mark.parametrize("pooling", ["attention", "contextual"])
@torch.no_grad()
def test_the_detector_looks_at_states_before_pooling(pooling):
    model = HybridForPreTraining(HybridConfig.from_size("tiny", pooling=pooling, pooling_grid=4)).eval()
    levels = random_levels(3)
    embedding = embed(model, levels, batch_size=3)
    states = model.encoder(levels_to_pixels(levels, 17)).last_hidden_state
    np.testing.assert_allclose(embedding.regions, states.flatten(1).numpy(), atol=1e-6)
    assert embedding.features.shape == (3, model.config.pooled_size)


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
