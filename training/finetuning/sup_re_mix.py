"""
SupReMix: a supervised contrast for regression, with mixtures that keep the order of the targets.

Shape letters: B images, M mixtures of an image, P width of a feature.
"""

import torch
from torch import nn
from transformers import Trainer

from modeling_hybrid.objectives.base import positive


class SupReMix(Trainer):
    """
    SupReMix (Wu et al. 2023, arXiv 2309.16633) beside the squared error, in training. For each image i with target y_i
    and a feature z_i of length one,

        loss_i = mean over p of [ log sum_a w_ia exp(<z_i, z_a> / t) - <z_i, z_p> / t ],      w_ia = 1 + |y_i - y_a|

    where a runs over the other images and over mixtures of features, which are constant to the gradient, and p over
    those of them whose target is y_i:

        negative  l z_i + (1 - l) z_k   of an image k with another target, mixed alike; l drawn from Beta(2, 8)
        positive  l z_j + (1 - l) z_k   with y_j < y_i < y_k, both within `window`, and l such that its target is y_i

    of length one each. Images without a p count nothing. The paper pre-trains by the contrast alone; joined with the
    squared error it is ours, as are targets in units of their standard deviation, which w and `window` need.

    Args:
        eta: weight of the contrast; not negative.
        temperature: t; must be positive.
        num_mixed: M, mixtures of each kind that are drawn for each image; 0 for none.
        window: how far the targets of a positive mixture may be; must be positive.
        weighted: whether w is as above; else it is one.

    Raises:
        ValueError: an argument is out of its range, several processes, or a model that is no regression of one value.
    """

    # What `compute_loss` gives is the mean over a batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args,
        eta: float = 0.1,
        temperature: float = 0.3,
        num_mixed: int = 16,
        window: float = 1.0,
        weighted: bool = True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        for name, value in (("eta", eta), ("num_mixed", num_mixed)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must not be negative.")
        self.eta, self.num_mixed, self.weighted = eta, num_mixed, weighted
        self.temperature, self.window = positive("temperature", temperature), positive("window", window)
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise ValueError("sup_re_mix contrasts the images of one process; start a single one, with one device.")
        config = self.model.config
        if (config.problem_type, config.num_labels) != ("regression", 1):
            raise ValueError(
                f"sup_re_mix learns one value of each image, but the model has problem_type={config.problem_type!r} "
                f"and num_labels={config.num_labels}; set problem_type='regression' and num_labels=1, as "
                "training.compare_regression does, or use another method."
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        features = []
        # The features are what the head is given.
        hook = model.classifier.register_forward_pre_hook(lambda module, given: features.append(given[0]))
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        hook.remove()
        loss = loss + self.eta * self.contrast(features[0], inputs["labels"].flatten())
        return (loss, outputs) if return_outputs else loss

    def contrast(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean over the images that have a positive, of features (B, P) with targets (B,)."""
        rows = nn.functional.normalize(features.float(), dim=1)
        gaps = (targets - targets[:, None]).abs()
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        # Of each column: similarity, distance of its target, and whether it counts.
        columns = [(rows @ rows.T, gaps, ~itself)]
        if self.num_mixed > 0:
            for mixed, their_targets, counts in mixtures(rows.detach(), targets, self.num_mixed, self.window):
                of_mixed = torch.einsum("bp,bmp->bm", rows, mixed)
                columns.append(
                    (of_mixed, (their_targets - targets[:, None]).abs(), counts[:, None].expand_as(of_mixed))
                )
        similarities, gaps, counts = (torch.cat(part, dim=1) for part in zip(*columns, strict=True))
        logits = similarities / self.temperature
        weighted = logits + gaps.log1p() if self.weighted else logits
        normaliser = weighted.masked_fill(~counts, torch.finfo(logits.dtype).min).logsumexp(dim=1)
        is_positive = counts & (gaps == 0)
        num_positives = is_positive.sum(dim=1)
        mean = (logits * is_positive).sum(dim=1) / num_positives.clamp(min=1)
        has_one = num_positives > 0
        return ((normaliser - mean) * has_one).sum() / has_one.sum().clamp(min=1)


def mixtures(rows: torch.Tensor, targets: torch.Tensor, num: int, window: float) -> list[tuple[torch.Tensor, ...]]:
    """
    The negative and the positive mixtures of rows (B, P) with targets (B,): each the mixtures (B, M, P), their targets
    (B, M), and which images have any (B,).
    """
    difference = targets - targets[:, None]
    is_near = difference.abs() <= window
    below, above, other = (difference < 0) & is_near, (difference > 0) & is_near, difference != 0

    def drawn(allowed: torch.Tensor) -> torch.Tensor:
        """(B, M) images among those that are allowed (B, B); any where none is."""
        return torch.multinomial((allowed | ~allowed.any(dim=1, keepdim=True)).float(), num, replacement=True)

    def mixed(share: torch.Tensor, one: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(share[..., None] * one + (1 - share[..., None]) * others, dim=2)

    k = drawn(other)
    share = torch.distributions.Beta(2.0, 8.0).sample(k.shape).to(rows)
    negatives = (
        mixed(share, rows[:, None], rows[k]),
        share * targets[:, None] + (1 - share) * targets[k],
        other.any(dim=1),
    )
    j, k = drawn(below), drawn(above)
    has_both = below.any(dim=1) & above.any(dim=1)
    share = torch.where(has_both[:, None], (targets[k] - targets[:, None]) / (targets[k] - targets[j]), 0.5).to(rows)
    positives = mixed(share, rows[j], rows[k]), targets[:, None].expand(k.shape), has_both
    return [negatives, positives]
