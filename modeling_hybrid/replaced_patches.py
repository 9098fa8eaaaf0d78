"""
Telling the patches that the model has drawn itself from those of the image.

Shape letters: N images, S patches, K codes of a patch, D hidden size.
"""

import torch
from torch import nn

from .configuration_hybrid import HybridConfig
from .depth_head import DepthHead
from .sampling import Draw


class ReplacedPatches(nn.Module):
    """
    ELECTRA (Clark et al. 2020, arXiv 2003.10555) with the likelihood as the generator: a share of the patches is drawn
    anew, each given the true ones before it, and a linear head tells from bidirectional states which are not those of
    the image. A causal detector would have nothing to find: what is before a patch and a draw are distributed as the
    data, where the generator is perfect.

    Nothing is learnt through the draws, which come from torch's default generator.
    """

    share = 0.15

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.head = nn.Linear(config.hidden_size, 1)

    @torch.no_grad()
    def corrupt(self, depth_head: DepthHead, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Codes (N, S, K) -> the same with drawn patches among them, given the states (N, S, D) that predict each."""
        is_drawn = torch.rand(codes.shape[:2], device=codes.device) < self.share
        drawn = depth_head.sample(states[is_drawn], codes[:0], Draw())
        return codes.masked_scatter(is_drawn[..., None], drawn)

    def forward(self, states: torch.Tensor, is_replaced: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Mean binary cross entropy over the patches, and telemetry.

        Args:
            states: (N, S, D) of the corrupted images, each of which has seen the whole image.
            is_replaced: (N, S) which patches differ from those of the image; a draw that is the same does not.
        """
        logits = self.head(states).squeeze(-1).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, is_replaced.to(logits))
        with torch.no_grad():
            found = (logits > 0) == is_replaced
            telemetry = {"replaced_loss": loss, "replaced_share": is_replaced, "replaced_accuracy": found}
            return loss, {name: value.detach().float().mean() for name, value in telemetry.items()}
