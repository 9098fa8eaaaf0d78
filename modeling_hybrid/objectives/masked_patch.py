"""Masked contrast: what the decoder expects of a patch finds the patch."""

from collections.abc import Sequence

import torch
from torch import nn

from .base import Objective, ObjectiveBatch, positive
from .distributed import gather, own_samples, rank_and_world_size
from .log_sum_exp import masked_logsumexp


class MaskedPatch(Objective):
    """
    The masked contrast of M-CURL (Zhu et al. 2020, arXiv 2010.07470), for the patches of an image. The mask is
    causality: the state of the decoder g_s has not seen patch s.

        q_s = norm(A g_s)                                          # for each patch s of each view
        k_u = norm(momentum embedding of patch u)                  # without position or context; no gradient
        loss = mean over s of log sum_u exp(<q_s, k_u> / t) - <q_s, k_s> / t

    where u runs over the different patches of all processes: equal codes are one candidate, not each other's negatives.
    The commonest patch, mostly background, is a candidate, but nobody is asked to find it. Keys with context would hold
    the prefix that the query has read, and telling images apart would do.

    Args:
        hidden_size: width of the states and of the embeddings; that of the model.
        temperature: t, divides the similarities; must be positive.
        momentum: share of its old weights that the momentum embedding keeps at every step, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    needs = frozenset({"decoder_states", "patch_embeddings", "codes"})
    min_views = 1
    min_samples = 1

    def __init__(self, hidden_size: int, temperature: float = 0.1, momentum: float = 0.99):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1).")
        self.momentum = momentum
        self.query = nn.Linear(positive("hidden_size", hidden_size), hidden_size, bias=False)

    def counts(self, view_kinds: Sequence[int], num_samples: int) -> tuple[int, int]:
        """Neither: a patch is compared with other patches, not with views or samples."""
        return 0, 0

    # The number of different patches, which gives tensors their shape, is another at every step.
    @torch.compiler.disable
    def loss(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        states = batch.decoder_states.flatten(0, 2)
        queries = nn.functional.normalize(states @ self.query.weight.T.to(states.dtype), dim=-1)
        keys, own, is_asked, num_asked = self.candidates(batch)
        normaliser = masked_logsumexp(queries, keys, 1 / self.temperature)
        losses = normaliser - torch.linalg.vecdot(queries, keys[own]) / self.temperature
        # The mean over the patches of all processes, of which each may ask for another number.
        loss = losses.masked_fill(~is_asked, 0).sum() * rank_and_world_size()[1] / num_asked.clamp(min=1)
        return loss, {"different_patches": losses.new_tensor(len(keys))}

    @torch.no_grad()
    def candidates(self, batch: ObjectiveBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Keys of the different patches of all processes (U, E); for each patch of this one (V * B * S,) which of them it
        is, and whether it is asked for; and how many are, of all processes, ().
        """
        codes, embeddings = (gather(part, dim=1) for part in (batch.codes, batch.patch_embeddings))
        _, which, counts = codes.flatten(0, 2).unique(dim=0, return_inverse=True, return_counts=True)
        places = torch.arange(len(which), device=which.device)
        first = torch.full_like(counts, len(which)).scatter_reduce(0, which, places, "amin")
        keys = nn.functional.normalize(embeddings.flatten(0, 2)[first], dim=-1)
        is_asked = which != counts.argmax()
        own = own_samples(batch.codes.shape[1], which.device)

        def of_this_process(part: torch.Tensor) -> torch.Tensor:
            return part.view(codes.shape[:3])[:, own].flatten()

        return keys, of_this_process(which), of_this_process(is_asked), is_asked.sum()
