"""Methods of fine-tuning beside each other, from few labels: the same images, steps and checkpoint for all."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from modeling_hybrid import HybridConfig

from ..config import PretrainConfig
from ..data.splits import load_splits
from ..evaluation.confidence import calibration_errors
from ..finetuning.classification import LabelledImages, finetune_checkpoint, quiet_arguments
from ..finetuning.methods import name_and_arguments
from .significance import as_json, difference_of_runs, paired_difference


@dataclass
class FewLabels:
    """
    Args:
        checkpoint: folder of a pre-trained model.
        config: says which data, and how views are augmented.
        methods: as `--method` of `training.finetune`; the first is the control of the others.
        shots: training images of each class.
        num_steps: of each run.
        seeds: of the draw of the images and of the training.
    """

    checkpoint: Path
    config: PretrainConfig
    methods: list[str]
    shots: list[int]
    num_steps: int
    seeds: list[int]

    def run(self) -> dict[str, Any]:
        """What each method gives on the test split, as arms for the table of systems."""
        splits = load_splits(self.config.data, HybridConfig.from_pretrained(self.checkpoint))
        parts = {"train": splits.reference, "validation": splits.validation, "test": splits.test}
        levels = {name: part.all_levels() for name, part in parts.items()}
        labels = {name: part.labels() for name, part in parts.items()}
        arms: dict[str, Any] = {}
        for num_shots in self.shots:
            logits: dict[str, list[np.ndarray]] = {method: [] for method in self.methods}
            for seed in self.seeds:
                chosen = drawn(labels["train"], num_shots, seed)
                few_levels = levels | {"train": levels["train"][chosen]}
                few_labels = labels | {"train": labels["train"][chosen]}
                for method in self.methods:
                    # Trainer prints its log.
                    with redirect_stdout(sys.stderr):
                        found = self.logits(method, few_levels, few_labels, splits.class_names, seed)
                    logits[method].append(found)
                    accuracy = (logits[method][-1].argmax(axis=1) == labels["test"]).mean()
                    print(f"{num_shots} label(s) per class, seed {seed}, {method}: {accuracy:.4f}", flush=True)
            arms |= self.arms_of(num_shots, logits, labels["test"])
        return arms

    def logits(self, method: str, levels: dict, labels: dict, class_names: list[str], seed: int) -> np.ndarray:
        """Of the test images (N, Y), by the model that is best on validation of ten measurements."""
        measured_every = max(1, self.num_steps // 10)
        with TemporaryDirectory() as folder:
            arguments = quiet_arguments(
                folder,
                seed=seed,
                max_steps=self.num_steps,
                eval_strategy="steps",
                eval_steps=measured_every,
                save_strategy="steps",
                save_steps=measured_every,
                save_only_model=True,
                load_best_model_at_end=True,
            )
            trainer = finetune_checkpoint(
                self.checkpoint, levels, labels, class_names, self.config.augmentation, arguments, method=method
            )
            test = LabelledImages(levels["test"], labels["test"], trainer.model.config.num_levels)
            return trainer.predict(test).predictions

    def arms_of(self, num_shots: int, logits: dict[str, list[np.ndarray]], labels: np.ndarray) -> dict[str, Any]:
        correct = {m: np.stack([row.argmax(axis=1) == labels for row in rows]) for m, rows in logits.items()}
        errors = {m: [calibration_errors(row, labels)["ece"] for row in rows] for m, rows in logits.items()}
        control = self.methods[0]
        arms = {}
        for method in self.methods:
            runs = [
                {"seed": seed, "accuracy": float(right.mean()), "ece": ece}
                for seed, right, ece in zip(self.seeds, correct[method], errors[method], strict=True)
            ]
            arm = {"title": f"{method}, {num_shots} label(s) per class", "runs": runs}
            if method != control:
                found = {
                    "accuracy": paired_difference(correct[method], correct[control]),
                    "ece": difference_of_runs(errors[method], errors[control]),
                }
                system, _ = name_and_arguments(method)
                arm |= {"system": system, "control": f"{control}, {num_shots}", "minus_control": as_json(found)}
            arms[f"{method}, {num_shots}"] = arm
        return arms


def drawn(labels: np.ndarray, num_shots: int, seed: int) -> np.ndarray:
    """Places of `num_shots` images of each class among those with labels (N,); of fewer, all that there are."""
    generator = np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([generator.permutation(places)[:num_shots] for places in of_class])
