"""
Multistage contrastive learning: the batches of a stage come from clusters of the features before it.

Shape letters: N images, P width of a feature.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.preprocessing import normalize

from modeling_hybrid import HybridForPreTraining

from ..config import load_config
from ..data.splits import load_splits
from ..embedding import embed
from ..evaluation.probes import Labelled, few_shot, fit_linear, is_correct
from .contest import differences
from .objectives import COLUMNS, values_of
from .significance import as_json
from .sweep import PlannedRun
from .tuning import require_finished


@dataclass
class Multistage:
    """
    MCL (Zhang et al. 2024, arXiv 2402.11816). After each stage the features of the training images, of length one, are
    cut into clusters by k-means, within those of the stages before; the next stage goes on from its weights, with
    batches of one cluster each: what tells the clusters apart helps it no more. The feature of an image is what all
    stages give, joined.

    Batches are drawn by the size of the clusters (the authors' take the clusters in turn). A single cluster is plain
    training in as many stages, the control.

    Args:
        config: configuration of each stage, with `overrides`.
        num_stages: 2 or more.
        output_dir: a folder for each stage of each seed comes in there; what is finished is not repeated.

    Raises:
        ValueError: too few stages, or data that is streamed or has no labels.
    """

    config: Path
    overrides: list[str]
    num_stages: int
    output_dir: Path

    def __post_init__(self):
        if self.num_stages < 2:
            raise ValueError(f"--num-stages {self.num_stages} must be at least 2: the first has no clusters yet.")
        config = load_config(self.config, [*self.overrides, f"output_dir={self.output_dir}"])
        if config.data.streaming or config.data.label_column is None:
            raise ValueError(
                f"data.streaming={config.data.streaming}, data.label_column={config.data.label_column!r}: clusters are "
                "those of a table, and features are judged by labels; set streaming=false, and name a column."
            )
        self.evaluation, self.data, self.model = config.evaluation, config.data, config.model_config()

    @cached_property
    def splits(self):
        return load_splits(self.data, self.model, self.evaluation.max_images)

    def features(self, run: PlannedRun) -> dict[str, np.ndarray]:
        """(N, P) of length one of every split, by a finished run."""
        model = HybridForPreTraining.from_pretrained(run.folder / "model")
        parts = {"train": self.splits.reference, "validation": self.splits.validation, "test": self.splits.test}
        batch_size = self.evaluation.batch_size
        return {
            name: normalize(embed(model, part.all_levels(), batch_size, with_likelihood=False).features)
            for name, part in parts.items()
        }

    def stages(self, num_clusters: int, seed: int) -> list[PlannedRun]:
        """All stages, finished. The first is the same for any number of clusters."""
        folder = self.output_dir / f"seed-{seed}"
        runs = [PlannedRun(self.config, (*self.overrides, f"seed={seed}"), folder / "stage-0")]
        require_finished(runs, 1)
        clusters = np.zeros(len(self.splits.train), int)
        for stage in range(1, self.num_stages):
            path = folder / f"{num_clusters}-clusters" / f"stage-{stage}.npy"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                found = MiniBatchKMeans(num_clusters, n_init=10, random_state=seed)
                found = found.fit_predict(self.features(runs[-1])["train"])
                np.save(path, num_clusters * clusters + found)
            clusters = np.load(path)
            # Its own order and views: those of the stage before have been seen.
            of_stage = (
                f"seed={seed + 1000 * stage}",
                f"initial_model={runs[-1].folder / 'model'}",
                f"data.clusters={path}",
            )
            runs.append(PlannedRun(self.config, (*self.overrides, *of_stage), path.with_suffix("")))
            require_finished(runs[-1:], 1)
        return runs

    def judged(self, runs: list[PlannedRun], seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What the joined features of the stages, and the likelihood of the last, give: values, and those per image."""
        of_stages = [self.features(run) for run in runs]
        splits = [
            Labelled(np.concatenate([features[name] for features in of_stages], axis=1), part.labels())
            for name, part in (
                ("train", self.splits.reference),
                ("validation", self.splits.validation),
                ("test", self.splits.test),
            )
        ]
        linear = is_correct(fit_linear(*splits[:2]), splits[2])
        shots = few_shot(*splits, self.evaluation.num_shots, self.evaluation.num_draws)
        accuracies = {"linear_accuracy": float(linear.mean()), "few_shot_accuracy": float(shots.mean())}
        per_image = {"linear_correct": linear, "few_shot_correct": shots.mean(axis=0)}
        last = runs[-1].evaluation()
        return {"seed": seed, "bits_per_dim": last.get("bits_per_dim")} | accuracies, per_image

    def contest(self, nums_clusters: list[int], seeds: list[int]) -> dict[str, Any]:
        """What each number of clusters gives, as arms for the table of systems, each beside a single cluster."""
        found: dict[int, list[tuple[dict, dict]]] = {num_clusters: [] for num_clusters in nums_clusters}
        for seed in seeds:
            for num_clusters in nums_clusters:
                values, per_image = self.judged(self.stages(num_clusters, seed), seed)
                found[num_clusters].append((values, per_image))
                print(f"seed {seed}, {num_clusters} cluster(s): {values_of(values)}", flush=True)
        arms = {}
        for num_clusters, runs in found.items():
            values, per_image = (list(part) for part in zip(*runs, strict=True))
            batches = "of all images" if num_clusters == 1 else f"each of one of {num_clusters} clusters"
            title = f"{self.num_stages} stages, features joined, batches {batches}"
            arms[str(num_clusters)] = {"title": title, "runs": values}
            if num_clusters > 1 and 1 in found:
                controls, their_images = (list(part) for part in zip(*found[1], strict=True))
                between = differences(values, controls, per_image, their_images)
                judged = {column.name: between[column.name] for column in COLUMNS if column.name in between}
                arms[str(num_clusters)] |= {"system": "mcl", "control": "1", "minus_control": as_json(judged)}
        return arms
