"""
Core-tuning: cross entropy and a supervised contrast, both on mixtures of features as well.

Shape letters: B images, R rows, P width of a feature, Y classes.
"""

import torch
from torch import nn
from transformers import Trainer

from modeling_hybrid.objectives.base import positive


class CoreTuning(Trainer):
    """
    Core-tuning (Zhang et al. 2021, arXiv 2102.06605), in training; evaluation is that of `Trainer`.

    Features f (B, P) with one-hot labels are joined by two mixtures of them, labels mixed alike:

        l f_other + (1 - l) f_i       other: any image of the batch; l = max(.8, draw of Beta(a, a))
        l f_far + (1 - l) f_near      far: of the class of i, the least similar; near: of another, the most similar

    The loss is the mean cross entropy of the classifier on all rows plus `eta` times a focal supervised contrast:

        z = rows of a head (linear, ReLU, linear), of length one
        q_ij = softmax over j != i of <z_i, z_j> / t
        loss_i = - sum_j p_ij (1 - q_ij) ln q_ij    p_ij: <y_i, y_j>, of sum one over j != i

    averaged over the rows that share a class with another. Where the authors' code differs: it detaches the features
    themselves, so that the encoder learns from mixtures alone; it takes rows for positives where labels are equal as
    floats, which those of mixtures never are.

    Args:
        eta: weight of the contrast; not negative.
        alpha: a; must be positive.
        temperature: t; must be positive.
        mixtures: whether to join them.
        focal: whether to weigh by 1 - q.

    Raises:
        ValueError: an argument is out of its range, several processes, or a run to be resumed: the head is no part of a
            checkpoint.
    """

    # What `compute_loss` gives is the mean over a batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args,
        eta: float = 0.1,
        alpha: float = 1.0,
        temperature: float = 0.07,
        mixtures: bool = True,
        focal: bool = True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not eta >= 0:
            raise ValueError(f"eta={eta} must not be negative.")
        self.eta, self.alpha = eta, positive("alpha", alpha)
        self.temperature = positive("temperature", temperature)
        self.mixtures, self.focal = mixtures, focal
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise ValueError("core_tuning contrasts the images of one process; start a single one, with one device.")
        width = self.model.config.pooled_size
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256)).to(self.args.device)

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if resume_from_checkpoint:
            raise ValueError(
                f"resume_from_checkpoint={resume_from_checkpoint!r}: core_tuning cannot go on, as its head is no part "
                "of a checkpoint; start again without it."
            )
        return super().train(None, *args, **kwargs)

    def create_optimizer(self, model=None):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            self.optimizer.add_param_group({"params": list(self.head.parameters()), "weight_decay": 0.0})
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        features = []
        # The features are what the classifier is given.
        hook = model.classifier.register_forward_pre_hook(lambda module, given: features.append(given[0]))
        outputs = model(**{name: part for name, part in inputs.items() if name != "labels"})
        hook.remove()
        loss = self.loss(model.classifier, features[0], inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def loss(self, classifier: nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of features (B, P) with labels (B,)."""
        rows, targets = features.float(), nn.functional.one_hot(labels, classifier.out_features).to(torch.float32)
        if self.mixtures:
            rows, targets = self.with_mixtures(rows, targets)
        loss = nn.functional.cross_entropy(classifier(rows.to(classifier.weight)).float(), targets)
        if self.eta > 0:
            loss = loss + self.eta * self.contrast(self.head(rows), targets)
        return loss

    def with_mixtures(self, rows: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, P) and targets (B, Y), and behind them the mixtures of both kinds, (3 B, P) and (3 B, Y)."""
        other = torch.randperm(len(rows), device=rows.device)
        far, near = hardest(rows.detach(), targets)
        beta = torch.distributions.Beta(self.alpha, self.alpha)
        share = beta.sample((len(rows), 2)).clamp(min=0.8).to(rows.device)

        def mixed(parts: torch.Tensor) -> torch.Tensor:
            any_two = share[:, :1] * parts[other] + (1 - share[:, :1]) * parts
            hard_two = share[:, 1:] * parts[far] + (1 - share[:, 1:]) * parts[near]
            return torch.cat([parts, any_two, hard_two])

        return mixed(rows), mixed(targets)

    def contrast(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The focal supervised contrast of projections (R, D) of any length, with targets (R, Y)."""
        rows = nn.functional.normalize(rows.float(), dim=1)
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        log_shares = (rows @ rows.T / self.temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
        log_shares = log_shares.masked_fill(itself, 0)
        weights = (targets @ targets.T).masked_fill(itself, 0)
        total = weights.sum(dim=1)
        focus = 1 - log_shares.exp() if self.focal else 1.0
        losses = -(weights * focus * log_shares).sum(dim=1) / total.where(total > 0, 1)
        return losses.sum() / (total > 0).sum().clamp(min=1)


def hardest(features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Of each of features (B, P) with one-hot targets (B, Y), the least similar one of its class and the most similar one
    of another, by cosine: places (B,) each. What is alone in its class, or has no other class beside it, is its own.
    """
    rows = nn.functional.normalize(features, dim=1)
    similarity, is_same = rows @ rows.T, (targets @ targets.T).bool()
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    far = similarity.masked_fill(~is_same | itself, torch.inf).fill_diagonal_(2.0).argmin(dim=1)
    near = similarity.masked_fill(is_same, -torch.inf).fill_diagonal_(-2.0).argmax(dim=1)
    return far, near
