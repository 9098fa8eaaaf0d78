"""
Few labels, and all test images at once: what queries of equal classes tell about each other (OpTA, of BECLR,
Poulakakis-Daktylidis and Jamali-Rad 2024, arXiv 2402.02444).

Shape letters: W classes of an episode, N queries, P width of a feature.
"""

import numpy as np
import torch

from modeling_hybrid.objectives.swav import sinkhorn

from ..probes import Labelled, logistic
from ..subject import Findings, Subject


NUM_EPISODES, NUM_WAYS = 100, 5
SHOTS = (1, 5)
# Queries of each class of an episode: as OpTA takes them to be, and as it does not.
NUM_QUERIES = {"": (15, 15, 15, 15, 15), "_unbalanced": (30, 3, 3, 3, 3)}


def evaluate(subject: Subject) -> Findings:
    """
    Mean accuracy over episodes of 1 and 5 training images of each of five classes and queries among the test images,
    without and with OpTA (`episode_1_shot_accuracy`, `transductive_1_shot_accuracy`), and the same of queries that are
    mostly of one class (suffix `_unbalanced`), against OpTA's assumption. Nothing without labels.

    It sees all queries at once, so it stands in no column of few-shot accuracies.
    """
    if subject.labels is None:
        return Findings()
    train, _, test = subject.labelled()
    results = {}
    for num_shots in SHOTS:
        for suffix, num_queries in NUM_QUERIES.items():
            accuracies = np.array(episodes(train, test, num_shots, num_queries)).mean(axis=0)
            for name, accuracy in zip(("episode", "transductive"), accuracies, strict=True):
                results[f"{name}_{num_shots}_shot_accuracy{suffix}"] = float(accuracy)
    return Findings(results, num_images={"episodes": NUM_EPISODES})


def episodes(
    train: Labelled, test: Labelled, num_shots: int, num_queries: tuple[int, ...], seed: int = 0
) -> list[tuple[float, float]]:
    """
    Accuracy without and with OpTA of each of `NUM_EPISODES` episodes. A class that has fewer images gives all of them.
    """
    generator = np.random.default_rng(seed)
    classes = np.intersect1d(train.labels, test.labels)

    def draw(images: Labelled, chosen: np.ndarray, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        of_class = [np.flatnonzero(images.labels == label) for label in chosen]
        drawn = [generator.permutation(rows)[:count] for rows, count in zip(of_class, counts, strict=True)]
        ways = np.repeat(np.arange(len(chosen)), [len(rows) for rows in drawn])
        return standardised(images.features[np.concatenate(drawn)]), ways

    found = []
    for _ in range(NUM_EPISODES):
        chosen = generator.permutation(classes)[:NUM_WAYS]
        shots, ways = draw(train, chosen, (num_shots,) * len(chosen))
        queries, answers = draw(test, chosen, num_queries[: len(chosen)])
        prototypes = np.stack([shots[ways == way].mean(axis=0) for way in range(len(chosen))])
        moved = moved_prototypes(prototypes, queries, num_shots)
        found.append(tuple(float((classify(each, queries) == answers).mean()) for each in (prototypes, moved)))
    return found


def standardised(rows: np.ndarray) -> np.ndarray:
    """Each row with mean 0 and standard deviation 1."""
    rows = rows.astype(np.float64)
    return (rows - rows.mean(axis=1, keepdims=True)) / (rows.std(axis=1, keepdims=True) + 1e-12)


def classify(prototypes: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The way (N,) that logistic regression on prototypes (W, P), one of each, gives queries (N, P)."""
    (probe,) = logistic(prototypes, np.arange(len(prototypes)), penalties=(1.0,))
    return probe.predict(queries)


def moved_prototypes(prototypes: np.ndarray, queries: np.ndarray, num_shots: int, epsilon: float = 0.05) -> np.ndarray:
    """
    Prototypes (W, P) moved to the means of the queries (N, P) that optimal transport gives them, (W, P):

        cost = squared distances of queries and prototypes, over the largest
        plan = sinkhorn(-cost / epsilon)            # equal mass for each query and for each prototype
        prototypes = mean of the queries, weighted by the plan

    five times over from one shot; from more, once, and .3 of the old prototype stays.
    """
    num_passes, share = (5, 1.0) if num_shots == 1 else (1, 0.7)
    old, queries = torch.from_numpy(prototypes), torch.from_numpy(queries)
    for _ in range(num_passes):
        costs = torch.cdist(queries, old).square()
        plan = sinkhorn(-costs / costs.max().clamp(min=1e-12), epsilon, num_iterations=50)
        old = share * (plan / plan.sum(dim=0)).T @ queries + (1 - share) * old
    return old.numpy()
