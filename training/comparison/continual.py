"""
Class-incremental learning: classes come in tasks, and of those before there are but a few images to rehearse.

Shape letters: N images, T tasks.
"""

import copy
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from modeling_hybrid import HybridConfig, HybridForImageClassification
from modeling_hybrid.levels import levels_to_pixels

from ..config import PretrainConfig
from ..data.splits import load_splits
from ..data.views import Views
from ..finetuning.classification import LabelledImages, quiet_arguments, start_head
from ..finetuning.coconut import Coconut
from .finetuning import drawn
from .significance import as_json, difference_of_runs


@dataclass(frozen=True)
class Method:
    """
    Args:
        weight: of COCONUT's contrast; 0 is replay alone.
        buffer_factor: how many times the images to rehearse that the others have.
        freeze_encoder: the head alone is fitted, on the images to rehearse.
    """

    title: str
    weight: float = 0.0
    buffer_factor: int = 1
    freeze_encoder: bool = False


METHODS = {
    "replay": Method("replay"),
    "coconut": Method("COCONUT", weight=1.0),
    "double_replay": Method("replay of twice as many images", buffer_factor=2),
    "probe": Method("frozen encoder, probe on the images to rehearse", freeze_encoder=True),
}


class Rehearsed(LabelledImages):
    """New images, and behind the first `num_new` of them those to rehearse: `is_rehearsal` tells."""

    def __init__(self, *args, num_new: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_new = num_new

    def __getitems__(self, indices: list[int]) -> list[dict]:
        items = super().__getitems__(indices)
        return [item | {"is_rehearsal": i >= self.num_new} for i, item in zip(indices, items, strict=True)]


@dataclass
class Continual:
    """
    Args:
        checkpoint: folder of a pre-trained model.
        config: says which data, and how views are augmented.
        num_tasks: T; the classes are dealt out to them in their order.
        num_rehearsed: images of each class that are kept to rehearse.
        num_steps: of each task.
        learning_rate: of each task.
    """

    checkpoint: Path
    config: PretrainConfig
    num_tasks: int
    num_rehearsed: int
    num_steps: int
    learning_rate: float

    def __post_init__(self):
        splits = load_splits(self.config.data, HybridConfig.from_pretrained(self.checkpoint))
        if splits.class_names is None:
            raise ValueError(
                f"data.dataset={self.config.data.dataset!r} has no labels, so there are no classes to learn."
            )
        self.num_classes = len(splits.class_names)
        if not 2 <= self.num_tasks <= self.num_classes // 2:
            raise ValueError(
                f"--num-tasks {self.num_tasks} must lie in 2..{self.num_classes // 2}: two classes a task at least."
            )
        self.levels = {name: part.all_levels() for name, part in (("train", splits.reference), ("test", splits.test))}
        self.labels = {name: part.labels() for name, part in (("train", splits.reference), ("test", splits.test))}

    def accuracies(self, method: Method, seed: int) -> np.ndarray:
        """After each task (T, row), the accuracy on the test images of each task (T, column); NaN of later tasks."""
        set_seed(seed)
        model = HybridForImageClassification.from_pretrained(self.checkpoint, num_labels=self.num_classes)
        tasks = np.array_split(np.arange(self.num_classes), self.num_tasks)
        kept = drawn(self.labels["train"], method.buffer_factor * self.num_rehearsed, seed)
        found, teacher = np.full((self.num_tasks, self.num_tasks), np.nan), None
        for t, classes in enumerate(tasks):
            seen = np.concatenate(tasks[: t + 1])
            new = np.flatnonzero(np.isin(self.labels["train"], classes))
            old = kept[np.isin(self.labels["train"][kept], np.concatenate([[-1], *tasks[:t]]))]
            if method.freeze_encoder:
                places = kept[np.isin(self.labels["train"][kept], seen)]
                start_head(model, self.levels["train"][places], self.labels["train"][places])
            else:
                self.learn(model, np.concatenate([new, old]), len(new), method, teacher, seed)
                teacher = copy.deepcopy(model)
            predicted = self.predict(model, seen)
            for earlier in range(t + 1):
                is_of_task = np.isin(self.labels["test"], tasks[earlier])
                found[t, earlier] = (predicted == self.labels["test"])[is_of_task].mean()
        return found

    def learn(self, model, places: np.ndarray, num_new: int, method: Method, teacher, seed: int) -> None:
        levels, labels, num_levels = self.levels["train"][places], self.labels["train"][places], model.config.num_levels
        start_head(model.eval(), levels, labels)
        views = Views(self.config.augmentation, model.config.image_size, num_levels)
        with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # Trainer prints its log
            arguments = quiet_arguments(folder, seed=seed, max_steps=self.num_steps, learning_rate=self.learning_rate)
            images = Rehearsed(levels, labels, num_levels, views, num_new=num_new)
            Coconut(model=model, args=arguments, train_dataset=images, teacher=teacher, weight=method.weight).train()
        model.eval()

    @torch.no_grad()
    def predict(self, model: HybridForImageClassification, seen: np.ndarray) -> np.ndarray:
        """The likeliest of the classes that were seen, of each test image, (N,)."""
        batches = self.levels["test"].split(256)
        logits = [model(levels_to_pixels(part, model.config.num_levels).to(model.device)).logits for part in batches]
        return seen[torch.cat(logits).cpu().numpy()[:, seen].argmax(axis=1)]


def summary(accuracies: np.ndarray) -> dict[str, float]:
    """
    Of accuracies (T, T) as [`Continual.accuracies`] gives them: that on all classes after the `last` task, the
    `average` over tasks of that on the classes seen so far, each task with equal weight, and the `forgetting`: how far
    the accuracy on a task has fallen from its highest until the end, on average over all tasks but the last.
    """
    highest = np.nanmax(accuracies[:-1, :-1], axis=0)
    return {
        "last_accuracy": float(accuracies[-1].mean()),
        "average_accuracy": float(np.mean([np.nanmean(row) for row in accuracies])),
        "forgetting": float(np.mean(highest - accuracies[-1, :-1])),
    }


def contest(continual: Continual, methods: list[str], seeds: list[int]) -> dict[str, Any]:
    """What each method gives, as arms for the table of systems: COCONUT beside each of the others."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for seed in seeds:
        for name in methods:
            found = summary(continual.accuracies(METHODS[name], seed))
            runs[name].append({"seed": seed} | found)
            print(
                f"seed {seed}, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in found.items()), flush=True
            )
    arms = {name: {"title": METHODS[name].title, "runs": runs[name]} for name in methods}
    for name in methods if "coconut" in methods else ():
        if name != "coconut":
            keys = [key for key in runs[name][0] if key != "seed"]
            found = {
                key: difference_of_runs([run[key] for run in runs["coconut"]], [run[key] for run in runs[name]])
                for key in keys
            }
            arms[f"coconut beside {name}"] = arms["coconut"] | {
                "system": "coconut",
                "control": name,
                "minus_control": as_json(found),
            }
    return arms
