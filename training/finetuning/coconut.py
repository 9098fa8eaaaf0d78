"""
COCONUT: rehearsed images stay near what the model made of them before, and away from other classes.

Shape letters: B images, R of them rehearsed, P width of a feature.
"""

import torch
from torch import nn
from transformers import Trainer

from modeling_hybrid.objectives.base import positive


class Coconut(Trainer):
    """
    Class-incremental learning by COCONUT (Cappellazzo et al. 2023, arXiv 2310.02699), without its term that aligns
    audio with text; the denominator is our reading. Beside the cross entropy on new and rehearsed images, for each
    rehearsed image i of a batch

        loss_i = - mean over p of ln [ e_ip / (e_ip + sum_a exp(<z_i, z_a> / t)) ],     e_ip = exp(<z_i, z'_p> / t)

    where p runs over the rehearsed images of the label of i, itself among them, and a over the images, new ones too, of
    other labels; z are features of length one, z' those of the teacher, the model after the task before. Without a
    teacher, without rehearsed images, and in evaluation, it is cross entropy.

    Examples of the data hold `is_rehearsal` () beside what the model takes.

    Args:
        teacher: the model after the task before, which stays as it is.
        weight: of the contrast; not negative.
        temperature: t; must be positive.

    Raises:
        ValueError: an argument is out of its range, or several processes.
    """

    # What `compute_loss` gives is the mean over a batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self, *args, teacher: nn.Module | None = None, weight: float = 1.0, temperature: float = 0.1, **kwargs
    ):
        super().__init__(*args, **kwargs)
        if not weight >= 0:
            raise ValueError(f"weight={weight} must not be negative.")
        self.weight, self.temperature = weight, positive("temperature", temperature)
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise ValueError("coconut contrasts the images of one process; start a single one, with one device.")
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        is_rehearsal = inputs.pop("is_rehearsal").bool()
        if not model.training or self.teacher is None or not is_rehearsal.any():
            return super().compute_loss(model, inputs, return_outputs)
        features = []
        # The features are what the classifier is given.
        hook = model.classifier.register_forward_pre_hook(lambda module, given: features.append(given[0]))
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        hook.remove()
        with torch.no_grad():
            given = {key: part[is_rehearsal] for key, part in inputs.items() if key != "labels"}
            taught = self.teacher.encoder(**given).pooler_output
        loss = loss + self.weight * self.contrast(features[0], taught, inputs["labels"], is_rehearsal)
        return (loss, outputs) if return_outputs else loss

    def contrast(
        self, features: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor, is_rehearsal: torch.Tensor
    ) -> torch.Tensor:
        """
        The mean over rehearsed images.

        Args:
            features: (B, P) of all images.
            taught: (R, P) of the rehearsed ones, by the teacher.
            labels: (B,) integers.
            is_rehearsal: (B,) which images are rehearsed, R of them.
        """
        rows, taught = (nn.functional.normalize(part.float(), dim=1) for part in (features, taught.detach()))
        rehearsed, own = rows[is_rehearsal], labels[is_rehearsal]
        negatives = (rehearsed @ rows.T / self.temperature).masked_fill(own[:, None] == labels, -torch.inf)
        positives = rehearsed @ taught.T / self.temperature
        is_same = own[:, None] == own
        losses = torch.logaddexp(positives, negatives.logsumexp(dim=1, keepdim=True)) - positives
        return (losses.masked_fill(~is_same, 0).sum(dim=1) / is_same.sum(dim=1)).mean()
