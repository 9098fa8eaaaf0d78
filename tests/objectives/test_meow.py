"""MEOW: clusters are found once an epoch, weights count them, and both are the same in a resumed or shared training."""

import copy

import pytest
import torch
from objective_fixtures import NUM_SAMPLES, draw_batch, make, unit_rows
from other_processes import run_group

from modeling_hybrid.objectives import ObjectiveBatch
from modeling_hybrid.objectives.meow import kmeans
from modeling_hybrid.objectives.true_negatives import TrueNegatives


def epoch(num_epochs=1, batch_size=8, seed=0):
    """Batches of rows around five centres, each image once an epoch; the centre is its number modulo five."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator, dtype=torch.float64), dim=1)
    for _ in range(num_epochs):
        for ids in torch.randperm(NUM_SAMPLES, generator=generator).split(batch_size):
            noise = 0.05 * torch.randn(2, len(ids), 8, generator=generator, dtype=torch.float64)
            rows = torch.nn.functional.normalize(centres[ids % 5] + noise, dim=-1)
            yield ObjectiveBatch(projections=rows, sample_ids=ids)


def trained(num_epochs=1, **arguments):
    objective = make("meow", num_clusters=5, **arguments)
    for batch in epoch(num_epochs):
        objective(batch)
    return objective


def test_kmeans_finds_clusters_that_are_far_apart():
    rows = torch.eye(4).repeat(10, 1) + 0.01 * torch.randn(40, 4)
    start = torch.Generator().manual_seed(3)
    found = kmeans(torch.nn.functional.normalize(rows, dim=1), 4, 10, start)
    again = kmeans(torch.nn.functional.normalize(rows, dim=1), 4, 10, torch.Generator().manual_seed(3))
    assert torch.equal(found, again)
    for place in range(4):
        assert len(found[place::4].unique()) == 1  # images of one place are never torn apart
    assert kmeans(rows[:2], 4, 10, start).max() < 2  # fewer rows than clusters


def test_clusters_come_at_the_end_of_an_epoch():
    objective = make("meow")
    batches = list(epoch())
    for batch in batches[:-1]:
        objective(batch)
        assert (objective.clusters == -1).all()
        everyone = torch.full((8, 8), 2.0, dtype=torch.float64)
        torch.testing.assert_close(objective.weights(batch), everyone)
    objective(batches[-1])
    assert (objective.clusters >= 0).all() and objective.num_seen == NUM_SAMPLES
    rows = batches[-1].projections.mean(dim=0)
    torch.testing.assert_close(
        objective.rows[batches[-1].sample_ids].double(), torch.nn.functional.normalize(rows, dim=1)
    )


def test_weights_are_the_clusterings_that_keep_two_images_apart():
    objective = trained()
    batch = next(epoch(seed=1))
    weights = objective.weights(batch)
    for i, one in enumerate(batch.sample_ids):
        for j, other in enumerate(batch.sample_ids):
            together = (objective.clusters[:, one] == objective.clusters[:, other]).sum()
            assert weights[i, j] == 2 - together
    assert (weights.diagonal() == 0).all()


def test_with_clusters_that_are_the_classes_it_is_the_oracle():
    objective, batch = trained(num_clusterings=1), draw_batch()
    objective.clusters[0] = torch.arange(NUM_SAMPLES) % 3
    labelled = ObjectiveBatch(projections=batch.projections, labels=batch.sample_ids % 3)
    torch.testing.assert_close(objective(batch)[0], TrueNegatives(0.2)(labelled)[0])


def test_all_of_one_cluster_costs_no_repulsion():
    objective, batch = trained(), draw_batch()
    objective.clusters.zero_()
    loss, telemetry = objective(batch)
    loss.backward()
    assert batch.projections.grad.isfinite().all() and telemetry["left_out_share"] == 1


def test_evaluation_weighs_all_the_same():
    objective = trained().eval()
    batch = ObjectiveBatch(projections=unit_rows(2, 6, 8))
    equal = TrueNegatives(0.2, weight=1.0)(ObjectiveBatch(projections=batch.projections, labels=torch.arange(6)))
    torch.testing.assert_close(objective(batch)[0], equal[0])


def test_it_goes_on_exactly_over_the_end_of_an_epoch():
    batches = list(epoch(2))
    objective = make("meow")
    for batch in batches[:4]:
        objective(batch)
    restored = make("meow")
    restored.load_state_dict(copy.deepcopy(objective.state_dict()))
    for batch in batches[4:]:
        assert torch.equal(objective(batch)[0], restored(batch)[0])
    assert torch.equal(objective.clusters, restored.clusters) and (objective.clusters >= 0).all()


def one_of_two(rank: int, path: str) -> None:
    objective, losses = make("meow"), []
    for batch in epoch(2):
        mine = slice(4 * rank, 4 * rank + 4)
        losses.append(objective(ObjectiveBatch(batch.projections[:, mine], sample_ids=batch.sample_ids[mine]))[0])
    torch.save((torch.stack(losses), objective.state_dict()), f"{path}-{rank}.pt")


def test_two_processes_find_the_clusters_of_one(tmp_path):
    run_group(one_of_two, 2, tmp_path, str(tmp_path / "found"))
    objective = make("meow")
    losses = torch.stack([objective(batch)[0] for batch in epoch(2)])
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, losses)
    for name, value in objective.state_dict().items():
        for _, state in found:
            torch.testing.assert_close(state[name], value, msg=name)


def test_bad_arguments_and_ids_are_named():
    for name in ("num_clusters", "num_clusterings", "num_iterations", "num_samples"):
        with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
            make("meow", **{name: 0})
    batch = draw_batch()
    batch.sample_ids[0] = NUM_SAMPLES
    with pytest.raises(ValueError, match=f"state for num_samples={NUM_SAMPLES} images"):
        make("meow")(batch)
