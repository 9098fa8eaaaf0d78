"""Batches of one cluster each: no image twice in an epoch, exact from any position, on any number of processes."""

from itertools import chain, islice

import datasets
import numpy as np
import pytest
from training_fixtures import assert_same_run, small_config, start, train_until, train_whole

from training.data.batches import training_batches
from training.data.images import LevelsDataset


CLUSTERS = np.repeat([7, -1, 3], [17, 9, 4])  # clusters by any names, of any sizes


@pytest.fixture
def source():
    """30 images whose one pixel is their index."""
    return LevelsDataset(datasets.Dataset.from_dict({"levels": [bytes([i]) for i in range(30)]}), (1, 1, 1))


def draw(source, num_batches: int, clusters=CLUSTERS, **arguments) -> tuple[list[list[int]], list]:
    given = {"batch_size": 4, "seed": 0, "clusters": clusters, **arguments}
    drawn = list(islice(training_batches(source, **given), num_batches))
    assert all(levels.flatten().tolist() == sample_ids.tolist() for levels, sample_ids, _ in drawn)
    return [sample_ids.tolist() for _, sample_ids, _ in drawn], [position for *_, position in drawn]


def test_a_batch_is_of_one_cluster_and_an_epoch_shows_no_image_twice(source):
    batches, positions = draw(source, 14)
    # 17 images fill 4 batches of 4, 9 fill 2, and 4 fill one.
    of_epochs = [[CLUSTERS[batch] for batch in batches[first : first + 7]] for first in (0, 7)]
    for clusters in of_epochs:
        assert all(len(set(batch)) == 1 for batch in clusters)
        assert sorted(int(batch[0]) for batch in clusters) == [-1, -1, 3, 7, 7, 7, 7]
    assert positions == [[(epoch, i + 1)] for epoch in (0, 1) for i in range(7)]
    one, other = list(chain(*batches[:7])), list(chain(*batches[7:]))
    assert len(set(one)) == len(set(other)) == 28 and one != other
    # Large clusters are no block at the beginning or the end.
    orders = {tuple(int(CLUSTERS[batch[0]]) for batch in draw(source, 7, seed=seed)[0]) for seed in range(5)}
    assert len(orders) > 1


def test_a_single_cluster_is_the_order_without_clusters(source):
    for clusters in (np.zeros(30, int), np.full(30, 5)):
        assert draw(source, 20, clusters) == draw(source, 20, None)


def test_every_position_goes_on_with_the_very_next_batch_also_on_other_processes(source):
    batches, positions = draw(source, 18)
    for i in range(15):
        assert draw(source, 3, start=positions[i])[0] == batches[i + 1 : i + 4]
    shares = [draw(source, 14, batch_size=2, process_index=i, num_processes=2)[0] for i in range(2)]
    assert [one + other for one, other in zip(*shares, strict=True)] == batches[:14]


def test_a_cluster_that_fills_no_batch_is_named(source):
    with pytest.raises(ValueError, match=r"Cluster 3 of data.clusters has 4 images.*batch_size=5 on each of 1"):
        draw(source, 1, batch_size=5)
    with pytest.raises(ValueError, match=r"has 4 images.*batch_size=4 on each of 2"):
        draw(source, 1, num_processes=2)


def of_two_clusters(tmp_path, num_images: int = 143) -> str:
    path = tmp_path / "clusters.npy"
    np.save(path, np.arange(num_images) % 2)
    return str(path)


def test_a_killed_run_with_clusters_goes_on_exactly(tmp_path, monkeypatch):
    clusters = of_two_clusters(tmp_path)
    whole, killed = (small_config(tmp_path / name, data__clusters=clusters) for name in ("whole", "killed"))
    train_whole(whole)
    for num_passes in (7, 2):
        train_until(killed, num_passes, monkeypatch)
    train_whole(killed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_wrong_clusters_are_named(tmp_path):
    for clusters, said in (
        (of_two_clusters(tmp_path, 5), r"int64 of shape \(5,\), but an integer for each of the 143"),
        (str(tmp_path / "missing.npy"), "cannot be read as a .npy file"),
    ):
        with pytest.raises(ValueError, match=said):
            start(small_config(tmp_path / "run", data__clusters=clusters, overwrite=True))
    with pytest.raises(ValueError, match="numbers the images of a table"):
        small_config(tmp_path / "run", data__clusters="a.npy", data__streaming=True)
