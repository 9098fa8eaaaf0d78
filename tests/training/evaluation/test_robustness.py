"""Corruptions against what each is called, the corruption error by hand, and an attack that must beat noise."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from model_fixtures import ENCODERS
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from training_fixtures import load_splits_once, small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.patch_codes import codes_to_pixels, pixels_to_codes
from training.data.images import evenly
from training.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from training.evaluation.probes import Labelled, fit_linear
from training.evaluation.questions import adversarial, robustness
from training.evaluation.subject import Findings, Subject
from training.metrics.mean_corruption_error.mean_corruption_error import mean_corruption_error


pytestmark = pytest.mark.usefixtures("one_thread")

METRIC = Path(__file__).parents[3] / "training" / "metrics" / "mean_corruption_error"
# Those in which an image draws something of its own.
RANDOM = {"gaussian_noise", "brightness", "occlusion", "translation", "rotation"}


def corrupt(name: str, levels: torch.Tensor, num_levels: int, severity: int, seed: int = 0) -> torch.Tensor:
    return CORRUPTIONS[name](levels, num_levels, severity, torch.Generator().manual_seed(seed))


def digits(num: int = 100) -> torch.Tensor:
    return torch.from_numpy(load_digits().images[:num]).to(torch.uint8)[:, None]


def constant(value: int, side: int = 28, num: int = 40, num_channels: int = 1) -> torch.Tensor:
    return torch.full((num, num_channels, side, side), value, dtype=torch.uint8)


def blob(side: int, row: float, column: float, num: int = 40) -> torch.Tensor:
    """A soft white dot on black, 256 levels."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    dot = 255 * torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 4)
    return dot.round().to(torch.uint8).expand(num, 1, side, side)


def centre_of_mass(levels: torch.Tensor) -> torch.Tensor:
    """Of images (N, 1, H, W) on black: row and column, counted from the middle of the image, (N, 2)."""
    mass = levels[:, 0].double()
    mass /= mass.sum((1, 2), keepdim=True)
    position = torch.arange(levels.shape[-1]) - (levels.shape[-1] - 1) / 2
    return torch.stack([(mass * position[:, None]).sum((1, 2)), (mass * position).sum((1, 2))], dim=1)


@pytest.mark.parametrize("shape", [(17, 1, 8, 8), (16, 1, 28, 28), (256, 3, 32, 32), (5, 1, 9, 9), (2, 3, 12, 7)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_images_are_images(name, shape):
    num_levels, *size = shape
    levels = torch.randint(num_levels, (6, *size), dtype=torch.uint8)
    before = levels.clone()
    for severity in SEVERITIES:
        corrupted = corrupt(name, levels, num_levels, severity)
        assert corrupted.shape == levels.shape and corrupted.dtype == torch.uint8
        assert corrupted.max() <= num_levels - 1
        assert torch.equal(corrupted, corrupt(name, levels, num_levels, severity))
    assert torch.equal(levels, before)
    for severity in (0, 6, "3"):
        with pytest.raises(ValueError, match=f"severity={severity!r}"):
            corrupt(name, levels, num_levels, severity)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_grows_and_images_draw_for_themselves(name):
    levels = digits()
    change = [(corrupt(name, levels, 17, severity).float() - levels).abs().mean() for severity in SEVERITIES]
    assert 0 <= change[0] < 2.5 and change[4] > max(1.4 * change[0], 0.5)
    # The same picture, many times.
    state = torch.get_rng_state()
    same = levels[3:4].expand(12, -1, -1, -1)
    corrupted, other_seed = corrupt(name, same, 17, 4), corrupt(name, same, 17, 4, seed=1)
    assert (len(corrupted.unique(dim=0)) > 1) == (name in RANDOM)
    assert torch.equal(corrupted, other_seed) == (name not in RANDOM)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["blur", "contrast", "translation", "rotation", "pixelate"])
@pytest.mark.parametrize(("value", "num_levels"), [(0, 17), (9, 17), (16, 17), (255, 256)])
def test_constant_images_stay(name, value, num_levels):
    for side in (8, 9):
        levels = constant(value, side)
        assert torch.equal(corrupt(name, levels, num_levels, 5), levels)


def test_noise_has_the_strength_it_says():
    change = corrupt("gaussian_noise", constant(128), 256, 3).float() - 128
    assert change.std() == pytest.approx(0.15 * 255, rel=0.02) and change.mean().abs() < 1


def test_brightness_treats_black_and_white_alike():
    assert corrupt("brightness", constant(128), 256, 5).unique().tolist() == [26, 230]
    levels, directions = digits(), torch.Generator().manual_seed(0)
    lighter = torch.randint(2, (len(levels),), generator=directions)[:, None, None, None] == 1
    corrupted = corrupt("brightness", levels, 17, 3)
    assert torch.equal(corrupted, torch.where(lighter, (levels + 4).clamp(max=16), levels.clamp(min=4) - 4))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("side", [8, 9, 32])
def test_occlusion_hides_the_same_share_of_every_image(value, side):
    corrupted = corrupt("occlusion", constant(value, side), 256, 5).float()
    hidden = (corrupted - value).abs() / 127.5
    assert torch.allclose(hidden.sum((1, 2, 3)), torch.tensor((0.5 * side) ** 2), rtol=0.02)
    assert hidden.max() <= 1.01


def test_translation_and_rotation_move_as_far_as_they_say():
    moved = centre_of_mass(corrupt("translation", blob(28, 13.5, 13.5), 256, 5))
    assert torch.allclose(moved.norm(dim=1), torch.tensor(0.2 * 28).double(), atol=0.15)
    # In all directions.
    assert moved.mean(0).norm() < 2 and (moved > 3).any() and (moved < -3).any()

    start = centre_of_mass(blob(28, 13.5, 20.5))[0]
    turned = centre_of_mass(corrupt("rotation", blob(28, 13.5, 20.5), 256, 5))
    assert torch.allclose(turned.norm(dim=1), start.norm(), atol=0.1)
    angle = torch.rad2deg(torch.atan2(turned[:, 0], turned[:, 1]))
    assert torch.allclose(angle.abs(), torch.tensor(40.0).double(), atol=1) and (angle > 0).any() and (angle < 0).any()


def test_blur_is_gaussian():
    levels = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8)
    expected = gaussian_filter(levels.numpy().astype(float), 0.06 * 28, mode="mirror", axes=(2, 3))
    np.testing.assert_allclose(corrupt("blur", levels, 256, 3), expected, atol=1)


def test_contrast_keeps_the_mean_of_each_channel():
    levels = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8).float()
    levels[:, 1] /= 3
    levels = levels.round().to(torch.uint8)
    faded = corrupt("contrast", levels, 256, 5)
    assert torch.allclose(faded.float().mean((2, 3)), levels.float().mean((2, 3)), atol=0.5)
    assert torch.allclose(faded.float().std((2, 3)), 0.2 * levels.float().std((2, 3)), atol=0.5)


@pytest.mark.parametrize("side", [8, 28])
def test_pixelation_is_a_mean_over_blocks(side):
    levels = torch.randint(256, (4, 1, side, side), dtype=torch.uint8)
    means = torch.nn.functional.avg_pool2d(levels.float(), 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (corrupt("pixelate", levels, 256, 4).float() - means).abs().max() <= 0.51
    # Where the side does not divide, as many blocks as asked for.
    corrupted = corrupt("pixelate", levels, 256, 5)[0, 0]
    assert (corrupted[1:] != corrupted[:-1]).any(1).sum() == round(0.4 * side) - 1


def test_jpeg_is_nearly_harmless_to_smooth_images_and_never_to_noise():
    smooth, noise = blob(32, 16, 16, num=2).expand(2, 3, 32, 32), torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for severity, least in ((1, 20), (5, 40)):
        on_smooth, on_noise = ((corrupt("jpeg", x, 256, severity).float() - x).abs().mean() for x in (smooth, noise))
        assert on_smooth < 12 and on_noise > least


def test_corruption_error_by_hand(tmp_path):
    errors, baseline = [[0.1, 0.2], [0.0, 0.5]], [[0.2, 0.4], [0.2, 0.3]]
    module = evaluate.load(str(METRIC), cache_dir=tmp_path)
    for row in zip(errors, baseline, strict=True):
        module.add(errors=row[0], baseline_errors=row[1])
    assert module.compute() == {"mean_corruption_error": pytest.approx((0.3 / 0.6 + 0.5 / 0.5) / 2)}
    assert mean_corruption_error(baseline, baseline) == 1
    # An easy corruption weighs as much as a hard one.
    assert mean_corruption_error([[0.02], [0.8]], [[0.01], [0.8]]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("errors", "baseline", "said"),
    [
        ([[0.1, 0.2]], [[0.1]], r"shape \(1, 2\) and baseline_errors \(1, 1\)"),
        ([0.1], [0.1], r"shape \(1,\)"),
        ([[1.5]], [[0.5]], "errors holds 1.5"),
        ([[float("nan")]], [[0.5]], "errors holds nan"),
        ([[0.5]], [[-0.5]], "baseline_errors holds -0.5"),
        ([[0.1, 0.1], [0.1, 0.1]], [[0.0, 0.1], [0.0, 0.0]], r"baseline_errors\[1\] is 0 at every severity"),
    ],
)
def test_corruption_error_names_what_is_wrong(errors, baseline, said):
    with pytest.raises(ValueError, match=said):
        mean_corruption_error(errors, baseline)


def test_card_of_the_metric_shows_what_runs():
    card = SpaceCard.load(METRIC / "README.md")
    scope = {}
    snippet = card.text.split("```python\n")[1].split("```")[0]
    exec(snippet.replace('"mean_corruption_error"', repr(str(METRIC))), scope)
    assert f"`{scope['results']}`" in card.text


@pytest.fixture(scope="module")
def make_subject(tmp_path_factory):
    """Builds a `Subject` of 200 digits of each split and an untrained model."""

    def make(seed=0, labels="label", **overrides):
        folder = tmp_path_factory.mktemp("run")
        sizes = {"data__validation_fraction": 0.3, "evaluation__max_images": 200}
        config = small_config(folder, data__label_column=labels, **{**sizes, **overrides})
        model_config = config.model_config()
        torch.manual_seed(seed)
        model = HybridForPreTraining(model_config).eval()
        splits = load_splits_once(config.data, model_config, max_images=0)
        return Subject(model, HybridImageProcessor.from_config(model_config), config, splits, folder)

    return make


@pytest.fixture(scope="module")
def findings(make_subject):
    return [robustness.evaluate(make_subject(seed, evaluation__num_out_of_distribution=50)) for seed in (0, 0, 1)]


FITS = ("", "_augmented_probe")


def test_robustness_reports_every_figure(findings):
    results, per_image = findings[0].results, findings[0].per_image
    prefixes = ("", "pixel_")
    assert set(results) == {
        *(
            f"{prefix}corrupted_accuracy{fit}{by}"
            for prefix in prefixes
            for fit in FITS
            for by in ("", "_by_corruption")
        ),
        *(f"{prefix}linear_accuracy_augmented_probe" for prefix in prefixes),
        *(f"mean_corruption_error{fit}" for fit in FITS),
    }
    for fit in FITS:
        by_corruption = {p: results[f"{p}corrupted_accuracy{fit}_by_corruption"] for p in prefixes}
        for prefix, values in by_corruption.items():
            assert list(values) == list(CORRUPTIONS) and all(len(row) == 5 for row in values.values())
            assert results[f"{prefix}corrupted_accuracy{fit}"] == pytest.approx(np.mean(list(values.values())))
        ratios = [
            sum(1 - a for a in by_corruption[""][name]) / sum(1 - a for a in by_corruption["pixel_"][name])
            for name in CORRUPTIONS
        ]
        assert results[f"mean_corruption_error{fit}"] == pytest.approx(np.mean(ratios))
        # 50 of the 200 test images are tried, from the first to the last.
        correct = per_image[f"corrupted_correct{fit}"]
        tried = ~np.isnan(correct)
        assert correct.shape == (200,) and tried.sum() == 50 and tried[0] and tried[-1]
        assert correct[tried].mean() == pytest.approx(results[f"corrupted_accuracy{fit}"])
    # Pixels are easy to read here, and corruption hurts.
    assert results["pixel_linear_accuracy_augmented_probe"] - 0.05 > results["pixel_corrupted_accuracy"] > 0.3
    # Training on shifted and turned digits helps with these.
    plain, augmented = (results[f"pixel_corrupted_accuracy{fit}_by_corruption"] for fit in FITS)
    assert sum(augmented["rotation"]) > sum(plain["rotation"])


def test_robustness_repeats_and_pixels_do_not_depend_on_the_model(findings):
    first, again, other = (found.results for found in findings)
    assert first == again
    pixels = [name for name in first if name.startswith("pixel_")]
    assert len(pixels) == 5
    assert {name: first[name] for name in pixels} == {name: other[name] for name in pixels}
    assert first["corrupted_accuracy_by_corruption"] != other["corrupted_accuracy_by_corruption"]


def test_no_ratio_where_pixels_make_no_error(make_subject, monkeypatch):
    """Nor an error, which would take the rest of the evaluation with it."""
    monkeypatch.setattr(robustness, "CORRUPTIONS", {"blur": CORRUPTIONS["blur"], "none": lambda levels, *_: levels})
    monkeypatch.setattr(robustness, "is_correct", lambda probe, test: test.features.std(axis=1) > -1)
    results = robustness.evaluate(make_subject()).results
    assert results["corrupted_accuracy"] == 1 and "mean_corruption_error" not in results


def test_augmented_copies(make_subject):
    subject = make_subject()
    state = torch.get_rng_state()
    copies = robustness.augmented_copies(subject)
    assert torch.equal(torch.get_rng_state(), state)
    assert copies.shape == subject.levels["train"].shape and copies.dtype == torch.uint8 and copies.max() <= 16
    assert torch.equal(copies, robustness.augmented_copies(subject))
    changed = (copies != subject.levels["train"]).flatten(1).any(1)
    assert changed.float().mean() > 0.95
    # Whatever views the training takes.
    without = make_subject(augmentation__num_augmented_views=0, model__contrastive_weight=0)
    assert torch.equal(robustness.augmented_copies(without), copies)


def test_nothing_without_labels(make_subject):
    subject = make_subject(labels="null")
    assert robustness.evaluate(subject) == adversarial.evaluate(subject) == Findings()


@pytest.mark.parametrize("num_classes", [2, 5])
def test_reader_is_the_fitted_probe(num_classes):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_classes, 200)
    # Class 3 is missing where there are five, and one feature never changes.
    labels[labels == 3] = 4
    features = np.eye(num_classes, 7)[labels] + 0.5 * generator.normal(size=(200, 7)) + 1
    features[:, 6] = 0
    split = Labelled(features.astype(np.float32), labels)
    probe = fit_linear(split, split)
    predicted, lead = adversarial.as_reader(probe, "cpu")(torch.from_numpy(split.features))
    np.testing.assert_array_equal(predicted, probe.predict(split.features))
    logits = probe.decision_function(split.features)
    ordered = np.sort(logits, axis=1) if num_classes > 2 else np.stack([0 * logits, np.abs(logits)], axis=1)
    np.testing.assert_allclose(lead, ordered[:, -1] - ordered[:, -2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_slope_of_a_code_is_exact_on_a_straight_table(make_model, draw_images, encoder):
    """Where the rows of the table lie on a line, the model can be differentiated in its levels themselves."""
    model = make_model(**ENCODERS[encoder])
    embedding = model.encoder.embeddings.code_embedding
    direction = torch.randn(embedding.embedding_dim)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(5.0)[:, None] * direction)
    codes = pixels_to_codes(draw_images(model.config, num=40), model.config)
    weights = torch.randn(model.encoder(codes=codes).pooler_output.shape[1])

    def judge(features):
        return torch.zeros(len(features), dtype=torch.long), features @ weights

    _, slopes = adversarial.of_codes(model.encoder, judge)(codes)

    levels = codes.float().requires_grad_()
    with embedding.register_forward_hook(lambda *_: levels[..., None] * direction):
        lead = judge(model.encoder(codes=codes).pooler_output)[1].sum()
    expected = torch.autograd.grad(lead, levels)[0]
    torch.testing.assert_close(slopes, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().mean() > 0.01 and not embedding._forward_hooks


def straight_victim(weights: torch.Tensor) -> adversarial.Victim:
    """Class 1 where the levels times the weights are positive, else 0."""

    def victim(levels):
        score = levels.double() @ weights
        return (score > 0).long(), weights * score.sign()[:, None]

    return victim


@pytest.mark.parametrize("budget", [0, 1, 3, 8])
def test_attack_is_the_strongest_there_is_against_a_straight_line(budget):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(32, (200, 20), generator=generator)
    weights = torch.randn(20, generator=generator).double()
    weights -= weights.mean()
    victim = straight_victim(weights)
    labels = victim(images)[0]
    labels[:20] = 1 - labels[:20]
    attacked = adversarial.attack(images, images, labels, victim, budget, num_levels=32)
    assert (attacked - images).abs().max() <= budget and attacked.min() >= 0 and attacked.max() <= 31
    # What is misread already stays as it is; the rest falls if moving every level against its weight makes it fall.
    assert torch.equal(attacked[:20], images[:20])
    away = (images - budget * (weights * (2 * labels[:, None] - 1)).sign()).clamp(0, 31).long()
    can_fall = victim(away)[0] != labels
    assert torch.equal(victim(attacked)[0] != labels, can_fall)
    assert budget == 0 or can_fall.sum() > 40


def test_sign_noise_moves_every_level_by_the_budget():
    noisy = adversarial.add_sign_noise(constant(128).long(), 8, 256)
    assert noisy.unique().tolist() == [120, 136] and (noisy > 128).float().mean() == pytest.approx(0.5, abs=0.02)
    assert adversarial.add_sign_noise(constant(0).long(), 8, 256).unique().tolist() == [0, 8]


def test_attack_beats_noise_of_its_size(make_subject):
    subject = make_subject()
    findings = adversarial.evaluate(subject)
    results = findings.results
    assert set(results) == {
        "adversarial_budget",
        *(
            f"{prefix}{name}_accuracy{by}"
            for prefix in ("", "pixel_")
            for name in ("adversarial", "sign_noise")
            for by in ("", "_by_budget")
        ),
    }
    assert results["adversarial_budget"] == 1
    for prefix in ("", "pixel_"):
        attacked, noisy = (results[f"{prefix}{name}_accuracy_by_budget"] for name in ("adversarial", "sign_noise"))
        assert list(attacked) == list(noisy) == ["0", "1", "2"]
        test = subject.labelled(prefix)[2]
        clean = subject.linear_probe(prefix).score(test.features, test.labels)
        assert attacked["0"] == noisy["0"] == pytest.approx(clean) and clean > 0.4
        assert results[f"{prefix}adversarial_accuracy"] == attacked["1"] < noisy["1"] - 0.1
        assert results[f"{prefix}sign_noise_accuracy"] == noisy["1"]
        assert attacked["2"] <= attacked["1"] and attacked["2"] < noisy["2"] - 0.1
    correct = findings.per_image["adversarial_correct"]
    assert correct.shape == (200,) and correct.mean() == pytest.approx(results["adversarial_accuracy"])
    assert adversarial.evaluate(make_subject()).results == results


def test_attacked_images_mislead_the_probe_as_everyone_uses_it(make_subject, monkeypatch):
    """Through pixel_values and scikit-learn, not through the differentiable copies; and NaN beyond the limit."""
    monkeypatch.setattr(adversarial, "MAX_TEST_IMAGES", 30)
    subject = make_subject()
    config, found = subject.model.config, adversarial.evaluate(subject)
    tried = evenly(200, 30)
    levels, labels = subject.levels["test"][tried], subject.labels["test"][tried]
    probe = subject.linear_probe()
    victim = adversarial.of_codes(subject.model.encoder, adversarial.as_reader(probe, "cpu"))
    codes = pixels_to_codes(levels_to_pixels(levels, 17), config)
    attacked = adversarial.attack(codes, codes, torch.from_numpy(labels), victim, 1, 17)
    attacked_levels = ((codes_to_pixels(attacked, config) + 1) * 8).round().to(torch.uint8)
    assert (attacked_levels.int() - levels.int()).abs().max() == 1
    correct = probe.predict(subject.embed(attacked_levels).features) == labels
    expected = np.full(200, np.nan)
    expected[tried] = correct
    np.testing.assert_array_equal(found.per_image["adversarial_correct"], expected)


def test_colour_images_of_more_levels(make_subject):
    subject = make_subject(
        model__num_channels=3, model__num_levels=33, evaluation__num_out_of_distribution=4, evaluation__max_images=40
    )
    assert robustness.evaluate(subject).results["mean_corruption_error"] > 0
    assert adversarial.evaluate(subject).results["adversarial_budget"] == 1
