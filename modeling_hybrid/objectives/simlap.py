"""SimLAP: any two classes are alike in a subspace of their own."""

import math
from itertools import permutations

import torch
from torch import nn
from transformers import initialization as init

from .base import Objective, ObjectiveBatch, positive
from .distributed import gather


class SimLAP(Objective):
    """
    Contrast in latent subspaces of pairs of classes (arXiv 2410.18200). Each pair (c, d), c = d among them, has a gate
    in (0, 1) for each coordinate of the rows, the same for (d, c):

        g(c, d) = sigmoid(MLP((e_c + e_d) / 2))                      # e: an embedding of each class, learnt

    An anchor i of class c meets a class d in the coordinates that the two share:

        for each ordered pair of views (a, b), each sample i, the label d of each sample of the batch:
            s_j = scale * <a_i * g(c, d)^2, b_j>                     # both rows gated, and not normalised again
            loss += mean over j with y_j = d of log(e^{s_j} + sum over k with y_k not in {c, d} of e^{s_k}) - s_j

    averaged. The authors draw one d for each anchor; here it is the mean over all draws. The logarithm of the scale is
    learnt, and held in [0, ln 100]; layer norms stand for their batch norms. Memory grows with the number of classes in
    a batch.

    Args:
        projection_dim: width of the rows.
        max_classes: that there is an embedding for; labels are 0 to `max_classes` - 1, not all of which need occur.
        temperature: the inverse of the scale at the start, from 0.01 to 1.
        embedding_size: width of e, and of the first layer of the MLP; the second is twice as wide.

    Raises:
        ValueError: an argument is out of its range; in `forward`, a label is (on the CPU only: elsewhere the check
            would wait for the device).
    """

    needs = frozenset({"projections", "labels"})
    max_log_scale = math.log(100)

    def __init__(
        self, projection_dim: int, max_classes: int = 1000, temperature: float = 0.1, embedding_size: int = 512
    ):
        super().__init__()
        if not 0.01 <= temperature <= 1:
            raise ValueError(f"temperature={temperature} must be in [0.01, 1].")
        self.temperature = temperature
        positive("embedding_size", embedding_size)
        self.embeddings = nn.Parameter(torch.empty(positive("max_classes", max_classes), embedding_size))
        self.mlp = nn.Sequential(
            nn.Linear(embedding_size, embedding_size),
            nn.LayerNorm(embedding_size),
            nn.ReLU(),
            nn.Linear(embedding_size, 2 * embedding_size),
            nn.LayerNorm(2 * embedding_size),
            nn.ReLU(),
            nn.Linear(2 * embedding_size, projection_dim),
        )
        self.log_scale = nn.Parameter(torch.empty(()))
        self.start_weights()

    def start_weights(self) -> None:
        init.normal_(self.embeddings)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                init.xavier_uniform_(layer.weight)
                init.zeros_(layer.bias)
            elif isinstance(layer, nn.LayerNorm):
                init.ones_(layer.weight)
                init.zeros_(layer.bias)
        init.constant_(self.log_scale, -math.log(self.temperature))

    def gates(self, ones: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Of pairs of classes (...,), in (0, 1): (..., D)."""
        return self.mlp((self.embeddings[ones] + self.embeddings[others]) / 2).sigmoid()

    def counts(self, view_kinds, num_samples):
        return len(view_kinds) - 1, (len(view_kinds) - 1) * (num_samples - 1)

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        labels, rows = batch.labels, batch.projections
        max_classes = len(self.embeddings)
        if labels.device.type == "cpu" and not (labels.min() >= 0 and labels.max() < max_classes):
            raise ValueError(
                f"labels hold {labels.min()} to {labels.max()}, but objective 'simlap' was given "
                f"max_classes={max_classes}, 0 to {max_classes - 1}."
            )
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(0, self.max_log_scale)
        scale = self.log_scale.to(rows).exp()
        candidates, their_labels = gather(rows, dim=1), gather(labels, dim=0)
        # The mean over draws of a batch-mate weighs each class by its size.
        classes, sizes = their_labels.unique(return_counts=True)
        gates = self.gates(classes[:, None], classes)[torch.searchsorted(classes, labels)]
        pairs = permutations(range(len(rows)), 2)
        losses = torch.stack(
            [pair_losses(rows[a], labels, candidates[b], their_labels, classes, gates, scale) for a, b in pairs]
        )
        loss = (losses * sizes).sum(dim=2).mean() / len(their_labels)
        gates = gates.detach().clamp(1e-6, 1 - 1e-6)
        entropy = -(gates * gates.log() + (1 - gates) * (1 - gates).log()).mean()
        return loss, {"temperature": 1 / scale.detach(), "mean_gate": gates.mean(), "gate_entropy": entropy}


def pair_losses(
    anchors: torch.Tensor,
    labels: torch.Tensor,
    candidates: torch.Tensor,
    their_labels: torch.Tensor,
    classes: torch.Tensor,
    gates: torch.Tensor,
    scale: torch.Tensor | float,
) -> torch.Tensor:
    """
    Of each anchor with each class: (B, C).

    Args:
        anchors: (B, D), of `labels` (B,).
        candidates: (G, D), of `their_labels` (G,).
        classes: (C,), each the label of a candidate.
        gates: (B, C, D) of the class of each anchor with each class.
    """
    logits = scale * (anchors[:, None] * gates.square()) @ candidates.T  # (B, C, G)
    is_positive = (their_labels == classes[:, None]).expand(logits.shape)
    is_negative = ~is_positive & (their_labels != labels[:, None])[:, None]
    # The smallest number, not -inf: there may be no negative.
    negatives = logits.masked_fill(~is_negative, torch.finfo(logits.dtype).min).logsumexp(dim=2, keepdim=True)
    losses = torch.logaddexp(logits, negatives) - logits
    return losses.masked_fill(~is_positive, 0).sum(dim=2) / is_positive.sum(dim=2)
