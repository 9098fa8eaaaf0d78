"""InfoNCE over the views of a batch."""

import torch

from .base import Objective, ObjectiveBatch, alignment, uniformity
from .distributed import gather, rank_and_world_size


class InfoNCE(Objective):
    """
    InfoNCE in the NT-Xent form of SimCLR (Chen et al. 2020, arXiv 2002.05709, eq. 1), averaged over anchors.

    Every row is an anchor; its positives are the other views of its sample, its candidates all rows but itself:

        for each anchor i:                                         # V * B rows, unit length
            for each positive p of i:
                loss += log sum_{a != i} exp(<z_i, z_a> / t) - <z_i, z_p> / t
        loss /= number of (anchor, positive) pairs

    With two views this is NT-Xent. With more, the other positives stay among the candidates, as in SupCon (Khosla et
    al. 2020, arXiv 2004.11362, eq. 2). Under several processes the anchors are local and the candidates are gathered.

    Args:
        temperature: divides the similarities; must be positive.

    Raises:
        ValueError: `temperature` is not positive; in `forward`, fewer than two views, or one sample in all.
    """

    def __init__(self, temperature: float = 0.2):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be positive.")
        self.temperature = temperature

    def forward(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        projections = batch.projections
        num_views, batch_size, _ = projections.shape
        rank, world_size = rank_and_world_size()
        num_samples = batch_size * world_size
        if num_views < 2 or num_samples < 2:
            raise ValueError(
                f"InfoNCE needs at least two views of at least two images, not {num_views} view(s) of {num_samples} "
                "image(s): without another image there is no negative. Raise the batch size, or set "
                "contrastive_weight=0."
            )
        queries, keys = projections.flatten(0, 1), gather(projections).flatten(0, 1)
        logits = queries @ keys.T / self.temperature

        view = torch.arange(num_views, device=logits.device)
        sample = rank * batch_size + torch.arange(batch_size, device=logits.device)
        query_index = (view[:, None] * num_samples + sample).flatten()
        logits = logits.scatter(1, query_index[:, None], -torch.inf)
        normaliser = logits.logsumexp(dim=1)
        # One column per other view: the rows of the same sample in it.
        positive_index = (query_index[:, None] + num_samples * view[1:]) % (num_views * num_samples)
        positives = logits.gather(1, positive_index)
        loss = (normaliser[:, None] - positives).mean()

        with torch.no_grad():
            telemetry = {
                "alignment": alignment(projections),
                "uniformity": uniformity(projections) if batch_size > 1 else loss.new_zeros(()),
                "contrastive_accuracy": (positives.amax(1) >= logits.amax(1)).float().mean(),
            }
        return loss, telemetry
