"""
What every evaluator takes and gives.

An evaluator is one small file of `questions/` with one function, `evaluate(subject) -> Findings`; the folder is the
suite, and `suite.py` asks what `evaluation.suite` names.

Shape letters: N images, C channels, H height, W width, P width of the pooled feature.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.pipeline import Pipeline

from modeling_hybrid import HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.patch_codes import levels_to_codes

from ..config import PretrainConfig, load_config
from ..data.splits import Splits
from ..embedding import Embedding, embed
from ..hardware import fork_rng
from .foreign_sets import foreign_sets
from .imagenet import imagenet_features
from .probes import Labelled, fit_linear, join


@dataclass
class Findings:
    """
    Args:
        results: for `evaluation.json`; the flat ones are what tables and cards report.
        per_image: one row for each test image (or for each image of a named set), for `per_image.npz`: what paired
            comparisons and curves are made from.
        num_images: how many images were asked about, by what they are, where a question does not take all there are.
    """

    results: dict[str, Any] = field(default_factory=dict)
    per_image: dict[str, np.ndarray] = field(default_factory=dict)
    num_images: dict[str, int] = field(default_factory=dict)


# Slow questions ask about so many images at least, however large these are: fewer say nothing.
LEAST_IMAGES = 32
# Subpixels of the images that are held at a time: a model keeps some kilobytes for each of them.
HELD_SUBPIXELS = 2**18


@dataclass
class Subject:
    """
    A trained model and the images it is judged on. What several evaluators need is computed once, when first asked for.

    Everything is fitted on `train` and chosen on `validation`; `test` is only ever scored.

    Args:
        splits: labels, groups and class names come from here.
        pictures: folder that pictures are written to.
        checkpoint: folder that the model was loaded from, if it was.
    """

    model: HybridForPreTraining
    image_processor: HybridImageProcessor
    config: PretrainConfig
    splits: Splits
    pictures: Path
    checkpoint: Path | None = None

    def __post_init__(self):
        parts = {"train": self.splits.reference, "validation": self.splits.validation, "test": self.splits.test}
        max_images = self.config.evaluation.max_images
        self.levels: dict[str, torch.Tensor] = {name: part.all_levels(max_images) for name, part in parts.items()}
        labels = {name: part.labels(max_images) for name, part in parts.items()}
        # (N,) integers of each split, or `None` where there are no classes.
        self.labels: dict[str, np.ndarray] | None = None if any(v is None for v in labels.values()) else labels
        # (N,) integers; test images of equal group are not independent. `None` where the data has no groups.
        self.groups: np.ndarray | None = self.splits.test.groups(max_images)
        self._probes: dict[str, Pipeline] = {}

    @property
    def has_likelihood(self) -> bool:
        return self.model.config.has_likelihood

    @property
    def has_learnt_from_these(self) -> bool:
        """Whether the configuration beside the checkpoint, if there is one, names the data that are asked about."""
        if self.checkpoint is None or not (beside := self.checkpoint.parent / "config.yaml").exists():
            return False
        ours, theirs = self.config.data, load_config(beside).data
        return (ours.dataset, ours.arguments) == (theirs.dataset, theirs.arguments)

    @property
    def batch_size(self) -> int:
        """Images at a time: `evaluation.batch_size`, or fewer where they are large, so that memory does not grow."""
        return min(self.config.evaluation.batch_size, max(1, HELD_SUBPIXELS // self.model.config.num_dims))

    def affordable(self, num_images: int) -> int:
        """How many of `num_images` a slow question takes ([`LEAST_IMAGES`], `evaluation.max_subpixels`)."""
        max_subpixels = self.config.evaluation.max_subpixels
        if max_subpixels == 0:
            return num_images
        return min(num_images, max(LEAST_IMAGES, max_subpixels // self.model.config.num_dims))

    def images(self, levels: torch.Tensor) -> list[Image.Image]:
        """Levels (N, C, H, W) as pictures."""
        return self.image_processor.pixels_to_images(levels_to_pixels(levels, self.model.config.num_levels))

    def embed(self, levels: torch.Tensor, with_likelihood: bool = False) -> Embedding:
        """Features, and nats where asked for and defined, of levels (N, C, H, W)."""
        return embed(self.model, levels, self.batch_size, with_likelihood)

    @cached_property
    def embeddings(self) -> dict[str, Embedding]:
        """Features and nats of every split."""
        return {name: self.embed(levels, with_likelihood=True) for name, levels in self.levels.items()}

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Pooled features (N, P) of every split."""
        return {name: embedding.features for name, embedding in self.embeddings.items()}

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """Raw pixels (N, C * H * W) of every split: the baseline that every feature has to beat."""
        return {name: as_pixels(levels) for name, levels in self.levels.items()}

    @cached_property
    def untrained(self) -> HybridForPreTraining:
        """The same model before any training."""
        with fork_rng(self.model.device):
            torch.manual_seed(self.config.seed)
            return HybridForPreTraining(self.model.config).to(self.model.device)

    @cached_property
    def random_embeddings(self) -> dict[str, Embedding]:
        """Features of every split by the untrained encoder."""
        return {name: self.embed_untrained(levels) for name, levels in self.levels.items()}

    def embed_untrained(self, levels: torch.Tensor) -> Embedding:
        """Features of levels (N, C, H, W) by the untrained encoder."""
        return embed(self.untrained, levels, self.batch_size, with_likelihood=False)

    @cached_property
    def random_features(self) -> dict[str, np.ndarray]:
        """Features (N, P) of every split by the same encoder before any training."""
        return {name: embedding.features for name, embedding in self.random_embeddings.items()}

    @cached_property
    def imagenet_features(self) -> dict[str, np.ndarray]:
        """Features (N, 1280) of every split by a network that was trained on ImageNet with labels."""
        num_levels = self.model.config.num_levels
        return {name: imagenet_features(levels, num_levels) for name, levels in self.levels.items()}

    @cached_property
    def decoder_features(self) -> dict[str, np.ndarray]:
        """Features (N, P) of every split by the decoder, where there is a likelihood."""
        return {name: self._decoder_features(levels) for name, levels in self.levels.items()}

    @torch.no_grad()
    def _decoder_features(self, levels: torch.Tensor) -> np.ndarray:
        batches = (
            levels_to_codes(batch.to(self.model.device), self.model.config) for batch in levels.split(self.batch_size)
        )
        return torch.cat([self.model.decoder_features(codes=codes).float().cpu() for codes in batches]).numpy()

    @cached_property
    def joined_features(self) -> dict[str, np.ndarray]:
        """Features (N, P) of every split by encoder and decoder together ([`join`])."""
        return join(self.features, self.decoder_features)

    def labelled(self, prefix: str = "") -> list[Labelled]:
        """
        Rows and labels of the training, validation and test split. The rows are features, or what `prefix` names:
        "pixel_" raw pixels, "random_" features of the untrained encoder, "imagenet_" of an ImageNet network, "decoder_"
        of the decoder, "joined_" of encoder and decoder.
        """
        rows = "pixels" if prefix == "pixel_" else f"{prefix}features"
        return [Labelled(getattr(self, rows)[name], self.labels[name]) for name in ("train", "validation", "test")]

    def linear_probe(self, prefix: str = "") -> Pipeline:
        """The fitted linear probe ([`fit_linear`]) on such rows."""
        if prefix not in self._probes:
            train, validation, _ = self.labelled(prefix)
            self._probes[prefix] = fit_linear(train, validation)
        return self._probes[prefix]

    @cached_property
    def foreign_levels(self) -> dict[str, torch.Tensor]:
        """Images of other kinds, by name of the kind."""
        num_images = self.affordable(self.config.evaluation.num_out_of_distribution)
        return foreign_sets(self.levels["test"], self.model.config.num_levels, num_images)

    @cached_property
    def foreign_embeddings(self) -> dict[str, Embedding]:
        return {name: self.embed(levels, with_likelihood=True) for name, levels in self.foreign_levels.items()}


def as_pixels(levels: torch.Tensor) -> np.ndarray:
    """Levels (N, C, H, W) -> the same as rows of floats, (N, C * H * W)."""
    return levels.flatten(1).float().numpy()
