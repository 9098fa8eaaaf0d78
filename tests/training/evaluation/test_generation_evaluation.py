"""Figures of generated images against closed forms and sets that are drawn up by hand."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from training_fixtures import load_splits_once, small_config

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from training.evaluation import judge
from training.evaluation.judge import feature_space, train_judge
from training.evaluation.likeness import frechet_distance, kernel_distance, likeness, share_within
from training.evaluation.questions import generation
from training.evaluation.subject import Subject


pytestmark = pytest.mark.usefixtures("one_thread")


def with_moments(num: int, mean: np.ndarray, covariance: np.ndarray) -> torch.Tensor:
    """Points (num, P) of exactly this mean and covariance."""
    points = np.random.default_rng(len(mean)).normal(size=(num, len(mean)))
    points -= points.mean(0)
    points = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return torch.from_numpy(points @ np.linalg.cholesky(covariance).T + mean)


def test_frechet_distance_is_that_of_the_gaussians():
    mixing = np.random.default_rng(0).normal(size=(2, 4, 4))
    one, other = mixing @ mixing.transpose(0, 2, 1) + 0.1 * np.eye(4)
    mean = np.array([1.0, -2.0, 0.5, 0.0])
    expected = mean @ mean + np.trace(one + other - 2 * sqrtm(one @ other).real)
    points = with_moments(50, mean, one), with_moments(70, np.zeros(4), other)
    assert frechet_distance(*points) == pytest.approx(expected, rel=1e-6)
    # Covariances that commute: the sum of squared differences of means and of standard deviations.
    points = with_moments(50, np.zeros(2), np.diag([4.0, 9.0])), with_moments(50, np.ones(2), np.diag([1.0, 1.0]))
    assert frechet_distance(*points) == pytest.approx(2 + 1 + 4, rel=1e-6)


def test_kernel_distance_is_the_mean_over_pairs():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(6, 3, generator=generator, dtype=torch.double) for _ in range(2))

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = sum(kernel(one[i], one[j]) + kernel(other[i], other[j]) for i, j in pairs) / 30
    across = sum(kernel(a, b) for a in one for b in other) / 36
    assert kernel_distance(one, other) == pytest.approx(within - 2 * across)


def test_kernel_distance_of_many_is_near_that_of_all_and_repeats(monkeypatch):
    one, other = with_moments(90, np.zeros(3), np.eye(3)), with_moments(90, np.ones(3), np.eye(3))
    whole = kernel_distance(one, other)
    monkeypatch.setattr("training.evaluation.likeness.SUBSET_SIZE", 45)
    parts, state = kernel_distance(one, other), torch.get_rng_state()
    assert parts == pytest.approx(kernel_distance(one, other)) and 1e-5 < abs(parts - whole) / whole < 0.3
    assert torch.equal(state, torch.get_rng_state())


def test_equal_sets_are_alike_and_distant_sets_are_not():
    points = with_moments(60, np.zeros(5), np.eye(5))
    same = likeness(points, points)
    assert same["precision"] == same["recall"] == 1
    # The kernel distance leaves out the pairs of an image with itself, which are the nearest.
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-6) and -0.5 < same["kernel_distance"] < 0
    apart = likeness(points, points + 100)
    assert apart["precision"] == apart["recall"] == 0
    assert apart["frechet_distance"] == pytest.approx(5 * 100**2) and apart["kernel_distance"] > 1e6


def test_precision_and_recall_by_hand():
    # On a line, the third nearest neighbours of 0, 1, 2, 3 and 10 are at distances 3, 2, 2, 3 and 9.
    real = torch.tensor([0.0, 1, 2, 3, 10], dtype=torch.double)[:, None]
    assert share_within(real, torch.tensor([[-3.0], [-3.1], [19.0], [19.1]], dtype=torch.double)) == 0.5
    # One mode of two: all that is drawn is real, and half of what is real is not drawn.
    modes = torch.cat([with_moments(20, np.zeros(2), np.eye(2)), with_moments(20, np.full(2, 100.0), np.eye(2))])
    drawn = modes[:20].repeat(2, 1) + 1e-3 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    results = likeness(modes, drawn)
    assert results["precision"] == 1 and results["recall"] <= 0.5


@pytest.fixture(scope="module")
def make_subject(tmp_path_factory):
    """Builds a `Subject` of the digits and an untrained model, with values of the configuration overridden."""

    def make(**overrides):
        folder = tmp_path_factory.mktemp("run")
        overrides = {"data__validation_fraction": 0.3, "evaluation__num_scored_samples": 40, **overrides}
        config = small_config(folder, **overrides)
        model_config = config.model_config()
        torch.manual_seed(0)
        model = HybridForPreTraining(model_config).eval()
        splits = load_splits_once(config.data, model_config, max_images=0)
        return Subject(model, HybridImageProcessor.from_config(model_config), config, splits, folder)

    return make


LIKENESS = {"frechet_distance", "kernel_distance", "precision", "recall"}
KEYS = {
    *LIKENESS,
    *(f"train_{key}" for key in LIKENESS),
    *("generation_feature_space", "num_scored_samples"),
    *("nearest_training_distance", "copied_share", "test_nearest_training_distance", "test_copied_share"),
}


def test_an_untrained_model_draws_nothing_like_the_data(make_subject):
    subject = make_subject(evaluation__max_images=0, evaluation__num_scored_samples=512)
    results = generation.evaluate(subject).results
    assert set(results) == {*KEYS, "judge_accuracy", "legible_share", "test_legible_share"}
    assert results["legible_share"] < results["test_legible_share"] > 0.8
    assert results["num_scored_samples"] == 360 and results["judge_accuracy"] > 0.9
    assert results["precision"] < 0.3 < results["train_precision"]
    assert results["frechet_distance"] > 2 * results["train_frechet_distance"]
    assert results["copied_share"] == 0 and results["nearest_training_distance"] > 2
    assert 0.5 < results["test_nearest_training_distance"] < 1.5
    for name, tiles in (("samples", 4), ("completions", 72), ("neighbours", 64)):
        # A grid of images and the lines between them, however enlarged.
        with Image.open(subject.pictures / f"{name}.png") as picture:
            assert picture.width * picture.height >= tiles * 81


def test_training_images_in_place_of_samples_reach_the_floor_and_are_copies(make_subject, monkeypatch):
    monkeypatch.setattr(judge, "NUM_STEPS", 10)
    subject = make_subject(evaluation__max_images=0)
    copies = subject.splits.reference.all_levels(40)
    results = generation.compare(subject, copies) | generation.memorisation(subject, copies)
    for key in LIKENESS:
        assert results[key] == pytest.approx(results[f"train_{key}"], abs=1e-9), key
    assert results["copied_share"] == 1 and results["nearest_training_distance"] == 0
    copies[::2, 0, 4, 4] = 16 - copies[::2, 0, 4, 4]
    changed = generation.memorisation(subject, copies)
    assert 0.5 <= changed["copied_share"] < 0.7 and 0 < changed["nearest_training_distance"] < 0.5


def test_space_of_features_without_labels(make_subject):
    subject = make_subject(data__label_column="null")
    space = feature_space(subject)
    name = "first 60 principal components of the pixels of the training images"
    assert space.facts == {"generation_feature_space": name} and space.certainty is None
    # All components of 60 training images: distances between them are those of the pixels.
    train = subject.levels["train"]
    distances = torch.cdist(train.flatten(1) / 16.0, train.flatten(1) / 16.0)
    features = space.features(train)
    torch.testing.assert_close(torch.cdist(features, features).float(), distances, atol=1e-4, rtol=1e-4)
    assert set(generation.evaluate(subject).results) == KEYS


def test_nothing_is_scored_on_demand_or_without_a_likelihood(make_subject):
    subject = make_subject(evaluation__num_scored_samples=0)
    assert generation.evaluate(subject).results == {} and (subject.pictures / "samples.png").exists()
    subject = make_subject(model__encoder_attention="bidirectional", model__generative_weight=0)
    assert generation.evaluate(subject).results == {} and not (subject.pictures / "samples.png").exists()


def test_samples_do_not_depend_on_who_asks(make_subject):
    subject = make_subject(evaluation__batch_size=16)
    samples = generation.sample(subject, 40, torch.Generator().manual_seed(0))
    assert samples.shape == (40, 1, 8, 8) and samples.dtype == torch.uint8 and samples.max() <= 16
    again = generation.sample(subject, 40, torch.Generator().manual_seed(0))
    assert torch.equal(samples, again) and len(samples.flatten(1).unique(dim=0)) > 30


@pytest.mark.parametrize(("num_channels", "image_size"), [(3, 20), (1, 4), (1, 7)])
def test_the_judge_reads_images_of_any_size_and_is_always_the_same(num_channels, image_size, monkeypatch):
    monkeypatch.setattr(judge, "NUM_STEPS", 20)
    levels = torch.randint(0, 5, (100, num_channels, image_size, image_size), dtype=torch.uint8)
    labels = np.arange(100) % 2
    levels[labels == 1, :, : image_size // 2] = 0
    state = torch.get_rng_state()
    one, other = (train_judge(levels, labels, 5, torch.device("cpu")) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    pixel_values = levels.float() / 2 - 1
    assert (one(pixel_values).argmax(1).numpy() == labels).mean() > 0.95
    torch.testing.assert_close(one.features(pixel_values), other.features(pixel_values), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_needs_torch_fidelity_and_says_so(tmp_path, make_subject):
    said = r"evaluation.generation_features='inception' must be .*pip install torch-fidelity"
    with pytest.raises(ValueError, match=said):
        small_config(tmp_path, evaluation__generation_features="inception")
    subject = make_subject()
    subject.config.evaluation.generation_features = "inception"
    with pytest.raises(ModuleNotFoundError, match="pip install torch-fidelity"):
        feature_space(subject)


def test_inception_is_given_bytes_in_three_colours(make_subject, monkeypatch):
    class Means(torch.nn.Module):
        """Stands for the network, of which no copy is at hand."""

        def __init__(self, name, features_list):
            super().__init__()
            assert features_list == ["2048"]

        def forward(self, images):
            assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8) and len(images) <= 16
            return images.float().mean((2, 3))

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Means)
    subject = make_subject(evaluation__batch_size=16)
    subject.config.evaluation.generation_features = "inception"
    space = feature_space(subject)
    levels = torch.arange(17, dtype=torch.uint8)[:, None, None, None].expand(17, 1, 8, 8)
    features = space.features(levels)
    assert features.shape == (17, 3) and features[0].eq(0).all() and features[-1].eq(255).all()
    assert space.facts == {"generation_feature_space": "2048 features of InceptionV3"}
