"""Fine-tuning for one value of each image, by methods beside each other: the same images, steps and checkpoint."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kornia.geometry.transform
import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from transformers import set_seed

from modeling_hybrid import HybridConfig, HybridForImageClassification
from modeling_hybrid.levels import levels_to_pixels

from ..config import PretrainConfig
from ..data.splits import load_splits
from ..embedding import embed
from ..finetuning.classification import LabelledImages, quiet_arguments
from ..finetuning.methods import name_and_arguments, trainer_of
from .significance import as_json, paired_difference


# Degrees to either side.
LARGEST_TURN = 45.0


def turned(levels: torch.Tensor, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Levels (N, C, H, W), each turned by an angle of its own, and the angles (N,) in degrees."""
    angles = (2 * torch.rand(len(levels), generator=torch.Generator().manual_seed(seed)) - 1) * LARGEST_TURN
    return kornia.geometry.transform.rotate(levels.float(), angles).round().to(levels.dtype), angles.numpy()


@dataclass
class Turns:
    """
    How far an image is turned, learnt from few images.

    Args:
        checkpoint: folder of a pre-trained model.
        config: says which data.
        methods: as `--method` of `training.finetune`, where `ce` is the squared error; the first is the control.
        num_images: to learn from.
        num_steps: of each run.
        seeds: of the draw of the images and of the training.
    """

    checkpoint: Path
    config: PretrainConfig
    methods: list[str]
    num_images: int
    num_steps: int
    seeds: list[int]

    def run(self) -> dict[str, Any]:
        """What each method gives on the test split, as arms for the table of systems."""
        splits = load_splits(self.config.data, HybridConfig.from_pretrained(self.checkpoint))
        train, test = splits.reference.all_levels(), turned(splits.test.all_levels(), seed=0)
        if self.num_images > len(train):
            raise ValueError(f"--num-images {self.num_images} are more than the {len(train)} training images.")
        errors: dict[str, list[np.ndarray]] = {method: [] for method in self.methods}
        for seed in self.seeds:
            chosen = np.random.default_rng(seed).permutation(len(train))[: self.num_images]
            few = turned(train[chosen], seed=seed + 1)
            for method in self.methods:
                with redirect_stdout(sys.stderr):  # Trainer prints its log
                    errors[method].append(self.errors(method, few, test, seed))
                print(f"seed {seed}, {method}: {errors[method][-1].mean():.3f} degrees", flush=True)
        return self.arms(errors)

    def errors(self, method: str, train: tuple, test: tuple, seed: int) -> np.ndarray:
        """Of each test image, in degrees, (N,)."""
        set_seed(seed)
        model = HybridForImageClassification.from_pretrained(
            self.checkpoint, num_labels=1, problem_type="regression"
        ).eval()
        num_levels, centre, spread = model.config.num_levels, train[1].mean(), train[1].std()
        targets = ((train[1] - centre) / spread).astype(np.float32)
        features = embed(model, train[0], batch_size=256, with_likelihood=False).features
        ridge = RidgeCV(np.logspace(-3, 3, 13)).fit(features, targets)
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(ridge.coef_)[None])
            model.classifier.bias.fill_(float(ridge.intercept_))
        with TemporaryDirectory() as folder:
            arguments = quiet_arguments(folder, seed=seed, max_steps=self.num_steps)
            images = LabelledImages(train[0], targets, num_levels)
            trainer_of(method)(model=model, args=arguments, train_dataset=images).train()
        model.eval()
        with torch.no_grad():
            pixel_values = levels_to_pixels(test[0], num_levels).to(model.device)
            found = torch.cat([model(part).logits[:, 0].cpu() for part in pixel_values.split(256)]).numpy()
        return np.abs(found * spread + centre - test[1])

    def arms(self, errors: dict[str, list[np.ndarray]]) -> dict[str, Any]:
        found, control = {}, self.methods[0]
        for method, rows in errors.items():
            runs = [
                {"seed": seed, "mean_absolute_error": float(row.mean())}
                for seed, row in zip(self.seeds, rows, strict=True)
            ]
            name = "squared error" if method == "ce" else method
            found[method] = {"title": f"{name}, angles from {self.num_images} images", "runs": runs}
            if method != control:
                between = {"mean_absolute_error": paired_difference(np.stack(rows), np.stack(errors[control]))}
                system, _ = name_and_arguments(method)
                found[method] |= {"system": system, "control": control, "minus_control": as_json(between)}
        return found
