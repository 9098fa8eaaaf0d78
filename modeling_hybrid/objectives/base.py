"""What every objective takes and gives. One objective is one class in one file of this folder."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import nn

from .distributed import rank_and_world_size
from .telemetry import alignment, effective_rank, nearest_is_positive, uniformity


# Kinds of view, which are also the tags of the model's sequences. A local view is a small crop.
CLEAN, AUGMENTED, LOCAL = 0, 1, 2

Number = TypeVar("Number", int, float)


@dataclass
class ObjectiveBatch:
    """
    What an objective may need of a batch; `None` where nobody gave it.

    Shape letters: V views, B samples of this process, D projection_dim, S patches, E hidden size.

    Args:
        projections: (V, B, D) rows of length one.
        keys: (V, B, D) projections of the same views by the momentum encoder, rows of length one, without gradient.
        view_kinds: (V,) `CLEAN`, `AUGMENTED` or `LOCAL`.
        labels: (B,) integer class of each sample.
        sample_ids: (B,) index of each sample in the training data.
        patch_projections: (V, B, S, D) projections of the single patches in raster order, rows of length one.
        patch_keys: (V, B, S, D) the same by the momentum encoder, without gradient.
        boxes: (V, B, 4) left, top, right and bottom edge of each view in its image, whose sides are 0 and 1. A mirrored
            view has its left edge right of its right one.
        decoder_states: (V, B, S, E) last states of the decoder.
        pixel_values: (V, B, C, H, W) the views themselves, in [-1, 1].
        codes: (V, B, S, K) codes of the patches.
        patch_embeddings: (V, B, S, E) what a moving average of the model embeds each patch as, without position or
            context, without gradient; equal where codes are.
        pooled: (V, B, P) pooled features, before any projector.
        teacher: (B, T) features of each image by another network, which does not learn.
    """

    projections: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    view_kinds: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    sample_ids: torch.Tensor | None = None
    patch_projections: torch.Tensor | None = None
    patch_keys: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    decoder_states: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    patch_embeddings: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    teacher: torch.Tensor | None = None

    def given(self) -> dict[str, torch.Tensor]:
        """The parts that are there, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    def at_least_float32(self) -> "ObjectiveBatch":
        """Similarities are not computed in half precision."""
        floats = {name: part for name, part in self.given().items() if part.is_floating_point()}
        return replace(
            self, **{k: part.to(torch.promote_types(part.dtype, torch.float32)) for k, part in floats.items()}
        )


class Objective(nn.Module):
    """
    Base class: hyperparameters go to the constructor, a batch goes to `forward`, the formula into `loss`.

    State that must survive a restart lives in buffers (of fp32 or integers, equal on all processes), and changes in
    training mode only. Files of this folder import only torch, transformers and each other, so that a checkpoint can
    carry the objective it was trained with. A constructor with an argument `projection_dim`, `hidden_size` or
    `pooled_size` gets it from the model's configuration; one with `num_samples` or `teacher_size` gets the number of
    training images or the width of the teacher's features from the training code.

    Attributes:
        needs: the parts of [`ObjectiveBatch`] without which there is no loss.
        min_views: fewest views of a sample.
        min_samples: fewest samples, over all processes.
        momentum: share of its old weights that the momentum encoder keeps at every step, where `needs` asks for its
            keys.
        gradient_is_detached: whether a part of the formula is constant to the gradient, which then is not that of the
            value.
    """

    Batch = ObjectiveBatch
    needs: frozenset[str] = frozenset({"projections"})
    min_views: int = 2
    min_samples: int = 2
    momentum: float | None = None
    gradient_is_detached: bool = False

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean over the anchors of this process, and what else to report: detached scalars by name."""
        raise TypeError(f"{type(self).__name__} does not define loss().")

    def counts(self, view_kinds: Sequence[int], num_samples: int) -> tuple[int, int]:
        """Positives and negatives of an anchor, given the kinds of the views and the samples of all processes."""
        return len(view_kinds) - 1, len(view_kinds) * (num_samples - 1)

    def check_views(self, view_kinds: Sequence[int], num_samples: int) -> None:
        """
        Raises:
            ValueError: the objective is not defined on such views, or on so few samples.
        """
        if len(view_kinds) < self.min_views or num_samples < self.min_samples:
            raise ValueError(
                f"{type(self).__name__} needs at least {self.min_views} view(s) of at least {self.min_samples} "
                f"image(s), not {len(view_kinds)} view(s) of {num_samples} image(s). Add views, raise the batch size, "
                "or set contrastive_weight=0."
            )

    def forward(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Returns:
            the loss, a mean over the anchors of this process, and telemetry: detached scalars by name.

        Raises:
            ValueError: a part of the batch is missing, or the objective is not defined on it.
        """
        # Images to evaluate on are not those that a state per sample is kept for, or that a teacher was asked about.
        optional = set() if self.training else {"sample_ids", "teacher"}
        if missing := sorted(self.needs - batch.given().keys() - optional):
            raise ValueError(f"{type(self).__name__} needs {', '.join(missing)}, which the batch does not hold.")
        batch = batch.at_least_float32()
        candidates = (batch.projections, batch.patch_projections, batch.decoder_states)
        rows = next(part for part in candidates if part is not None)
        kinds = [CLEAN] * len(rows) if batch.view_kinds is None else batch.view_kinds.tolist()
        self.check_views(kinds, rows.shape[1] * rank_and_world_size()[1])
        # Autocast would take the similarities in half precision.
        with torch.autocast(rows.device.type, enabled=False):
            loss, details = self.loss(batch)
            with torch.no_grad():
                return loss, {**_representation(rows.detach()), **details}


def positive(name: str, value: Number) -> Number:
    """
    Raises:
        ValueError: `value` is not positive.
    """
    if not value > 0:
        raise ValueError(f"{name}={value} must be positive.")
    return value


def _representation(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Alignment, accuracy, uniformity and effective rank of (V, B, D) or (V, B, S, E), read off at most 256 samples."""
    if rows.dim() == 4:
        rows = rows.mean(dim=2)
    rows = nn.functional.normalize(rows[:, :256], dim=-1)
    telemetry = {"effective_rank": effective_rank(rows.flatten(0, 1))}
    if rows.shape[0] > 1:
        telemetry["alignment"] = alignment(rows)
        telemetry["contrastive_accuracy"] = nearest_is_positive(rows)
    if rows.shape[1] > 1:
        telemetry["uniformity"] = uniformity(rows)
    return telemetry
