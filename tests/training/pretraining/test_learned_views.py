"""Learned views: what they are at the start, what each of the two steps moves, and that a run goes on with them."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector
from training_fixtures import assert_same_run, log_lines, small_config, start, train_until, train_whole

from modeling_hybrid import HybridModel
from modeling_hybrid.levels import levels_to_pixels, levels_to_shares
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN
from training.pretraining import learned_views
from training.pretraining.learned_views import (
    InterpolatedEmbedding,
    LearnedViews,
    build_run,
    features,
    squared_mmd,
    view_loss,
)


pytestmark = pytest.mark.usefixtures("one_thread")
LEARNED = {"augmentation__learned": True}


@pytest.fixture
def levels():
    return torch.randint(17, (12, 1, 8, 8), dtype=torch.uint8)


def constant_views(keep: float, scale: float = 0.0) -> LearnedViews:
    """The same logits for every pixel."""
    views = LearnedViews(1)
    views.network[-1].bias.data = torch.tensor([float(keep), float(scale)])
    return views


@pytest.mark.parametrize("pooling", ["regional", "contextual"])
def test_images_that_are_kept_whole_are_their_own_views(make_model, levels, pooling):
    encoder, images = (
        make_model(HybridModel, image_size=8, num_levels=17, pooling=pooling),
        levels_to_shares(levels, 17),
    )
    views, kept = constant_views(keep=100).draw(images)
    torch.testing.assert_close(views, images)
    assert kept.min() == 1
    wanted = features(encoder, images)
    assert squared_mmd(wanted, features(encoder, views)).abs() < 1e-5
    # Nothing but the cost of more than the budget is left.
    assert view_loss(constant_views(keep=100), encoder, images)[0].item() == pytest.approx(1e-3 * 0.6, abs=1e-5)
    assert squared_mmd(wanted, features(encoder, constant_views(keep=0)(images))) > 0.05


def test_a_view_is_masked_anew_each_time_and_scaled(levels):
    images = levels_to_shares(levels, 17).clamp(min=0.1)
    views = constant_views(keep=0)
    one, other = views(images), views(images)
    for view in (one, other):
        is_kept = view > 0
        assert torch.equal(view[is_kept], images[is_kept]) and 0.4 < is_kept.float().mean() < 0.6
    assert not torch.equal(one, other)
    brighter = constant_views(keep=100, scale=1)(images)
    torch.testing.assert_close(brighter, (2 * torch.sigmoid(torch.tensor(1.0)) * images).clamp(max=1))
    assert (constant_views(keep=-100)(images) == 0).all()


def test_discrepancy_against_the_loop():
    ours, theirs = torch.randn(4, 3), torch.randn(4, 3) + 1
    width = sum((a - b).square().sum() for a in ours for b in ours) / 16

    def mean(rows, others):
        return sum(torch.exp(-(a - b).square().sum() / width) for a in rows for b in others) / 16

    expected = mean(ours, ours) + mean(theirs, theirs) - 2 * mean(ours, theirs)
    torch.testing.assert_close(squared_mmd(ours, theirs), expected)


def test_between_two_levels_embeddings_are_interpolated():
    table = torch.nn.Embedding(5, 3)
    read = InterpolatedEmbedding(table)
    torch.testing.assert_close(read(torch.arange(5.0)), table.weight)
    levels = torch.tensor([0.25, 3.5], requires_grad=True)
    found = read(levels)
    torch.testing.assert_close(found[0], 0.75 * table.weight[0] + 0.25 * table.weight[1])
    found[1].sum().backward()
    assert levels.grad.tolist() == pytest.approx([0, (table.weight[4] - table.weight[3]).sum().item()], abs=1e-6)


@pytest.mark.parametrize("overrides", [{}, {"encoder_attention": "two_pass"}, {"patch_size": 4}])
def test_features_of_whole_levels_are_those_of_the_encoder(make_model, levels, overrides):
    encoder = make_model(HybridModel, image_size=8, num_levels=17, hidden_dropout=0.5, **overrides).train()
    table = encoder.get_input_embeddings()
    found = features(encoder, levels_to_shares(levels, 17))
    assert encoder.training and encoder.get_input_embeddings() is table
    encoder.eval()
    for kind, are_equal in ((AUGMENTED, True), (CLEAN, False)):
        kinds = torch.full((len(levels),), kind)
        expected = encoder(levels_to_pixels(levels, 17), view_kinds=kinds).pooler_output
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4) == are_equal


def test_each_step_moves_its_own_weights(tmp_path):
    run = start(small_config(tmp_path, **LEARNED))
    levels, sample_ids, _ = next(run.batches_from(None))

    def changed_by(step) -> set[str]:
        parts = {"model": run.bare_model, "views": run.learned}
        before = {name: parameters_to_vector(part.parameters()) for name, part in parts.items()}
        step()
        return {name for name, part in parts.items() if (parameters_to_vector(part.parameters()) != before[name]).any()}

    assert changed_by(lambda: run.learn_views(levels)) == {"views"}
    assert all(p.grad is None for p in run.bare_model.parameters())
    run.learn_views = lambda levels: {}
    assert changed_by(lambda: [run.step(levels, sample_ids) for _ in range(2)]) == {"model"}


def test_what_the_features_see_is_kept_and_the_rest_given_up(monkeypatch):
    """The gradient of each pixel's logit: up by features, which see the left half, down by the budget."""

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(64, 2, 8, 8))

        def forward(self, images):
            return self.logits

    monkeypatch.setattr(learned_views, "features", lambda encoder, images: images[..., :4].flatten(1))
    views = LearnedViews(1)
    views.network = Logits()
    view_loss(views, None, torch.rand(64, 1, 8, 8))[0].backward()
    seen, unseen = views.network.logits.grad[:, 0].split(4, dim=-1)
    torch.testing.assert_close(unseen, torch.full_like(unseen, 1e-3 * 0.25 / (64 * 64)))
    assert seen.mean() < 0


def test_a_run_goes_on_with_its_views(tmp_path, monkeypatch, whole_run):
    config = small_config(tmp_path, **LEARNED)
    for num_passes in (6, 5):
        train_until(config, num_passes, monkeypatch)
    run = train_whole(config)
    assert_same_run(whole_run(**LEARNED), tmp_path)
    rows = [row for row in log_lines(tmp_path) if "view_loss" in row]
    assert len(rows) > 1 and all(0 < row["kept_share"] < 1 for row in rows)
    # What the model is shown: not the image.
    clean, view = run.views(next(run.batches_from(None))[0])["pixel_values"]
    assert (clean != view).any()
    assert set(load_file(tmp_path / "last/model.safetensors")) == set(
        start(small_config(tmp_path / "plain")).bare_model.state_dict()
    )


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"learns augmented views, but .*num_augmented_views=0"):
        small_config(tmp_path, augmentation__num_clean_views=2, augmentation__num_augmented_views=0, **LEARNED)
    with pytest.raises(ValueError, match="learns views on one process, not on 2"):
        build_run(small_config(tmp_path, **LEARNED), SimpleNamespace(num_processes=2))
