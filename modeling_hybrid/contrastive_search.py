"""
Contrastive search: the next patch is likely, and the state after it is unlike the states before.

Shape letters: B images, S patches, L levels, D hidden size.
"""

from collections.abc import Callable

import torch
from torch import nn


def contrastive_search(
    model,
    codes: torch.Tensor,
    view_kinds: torch.Tensor,
    top_k: int,
    alpha: float,
    past_key_values,
    condition,
    put: Callable,
) -> torch.Tensor:
    """
    Complete images by contrastive search (Su et al. 2022, arXiv 2202.06417, eq. 5), where a patch is one code:

        for each patch t:
            for the k likeliest codes v:
                h_v = state of the decoder after reading v
                score_v = (1 - alpha) p(v) - alpha max_{j < t} cos(h_v, h_j)      # h_j: states after earlier patches
            code t = the v of the highest score

    It is deterministic. The first patch of an image from nothing is the likeliest: there are no states before it.

    Args:
        model: a [`HybridForImageGeneration`] of one code a patch.
        codes: (B, S', 1) given patches.
        view_kinds: (B,) tags.
        top_k: k.
        alpha: weight of what is unlike; 0 is greedy decoding.
        past_key_values: an empty `DynamicCache`, or `None`; each step keeps the part of the winners.
        condition: (B, D) what the decoder is told, or `None`.
        put: called with each new patch (B, 1, 1).

    Returns:
        codes (B, S, 1).
    """
    states = model.decoder_states(codes, view_kinds, past_key_values, condition)
    before, state = states[:, 1:], states[:, -1]  # after each patch; the first state knows the tag alone
    top_k = min(top_k, model.config.num_levels)
    first = top_k * torch.arange(len(codes), device=codes.device)
    kinds = view_kinds.repeat_interleave(top_k)
    told = None if condition is None else condition.repeat_interleave(top_k, dim=0)
    for _ in range(codes.shape[1], model.config.num_patches):
        logits = model.depth_head(state[:, None], codes.new_zeros(len(codes), 1, 1))[:, 0, 0]
        probabilities, candidates = logits.float().softmax(-1).topk(top_k)
        candidates = candidates.view(-1, 1, 1)
        longer = torch.cat([codes.repeat_interleave(top_k, dim=0), candidates], dim=1)
        if past_key_values is not None:
            past_key_values.batch_repeat_interleave(top_k)
        passed = longer if past_key_values is None else candidates
        after = model.decoder_states(passed, kinds, past_key_values, told)[:, -1]
        scores = probabilities
        if before.shape[1]:
            rows, others = (nn.functional.normalize(part.float(), dim=-1) for part in (after, before))
            similarity = torch.einsum("bkd,bjd->bkj", rows.unflatten(0, (-1, top_k)), others).amax(dim=-1)
            scores = (1 - alpha) * probabilities - alpha * similarity
        chosen = first + scores.argmax(dim=1)
        if past_key_values is not None:
            past_key_values.batch_select_indices(chosen)
        codes, state = longer[chosen], after[chosen]
        before = torch.cat([before, state[:, None]], dim=1)
        put(codes[:, -1:])
    return codes
