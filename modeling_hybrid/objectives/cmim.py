"""The contrast of cMIM: codes of images that differ from each other, without a second view."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .base import Objective, ObjectiveBatch, positive
from .distributed import gather, own_samples
from .log_sum_exp import masked_logsumexp


class CMim(Objective):
    """
    Contrastive mutual information machine (cMIM, Livne 2025, arXiv 2502.19642), as we read its abstract and reviews.

    Is a code its own, or one of the others? With cosines s_ij of the codes of B images, of which s_ii = 1,

        for each image i:
            others = mean over j != i of exp(s_ij / t)
            loss += log(1 + others / exp(1 / t))

    which is log 2 where all codes are equal, whatever B. It needs no second view; several are contrasted each for
    itself. With `decoder_condition="latent"` the rows are the very codes that the decoder is told.

    Args:
        temperature: t, divides the similarities; must be positive.

    Raises:
        ValueError: `temperature` is not positive.
    """

    min_views = 1

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def counts(self, view_kinds: Sequence[int], num_samples: int) -> tuple[int, int]:
        """Of its own view: the row itself, and the other samples."""
        return 1, num_samples - 1

    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        everyone = gather(batch.projections, dim=1)
        itself = own_samples(batch.projections.shape[1], everyone.device)[:, None]
        others = torch.stack(
            [
                masked_logsumexp(rows, candidates, 1 / self.temperature, left_out=itself)
                for rows, candidates in zip(batch.projections, everyone, strict=True)
            ]
        )
        margin = others - math.log(everyone.shape[1] - 1) - 1 / self.temperature
        return nn.functional.softplus(margin).mean(), {}
