"""
The normaliser of softmax objectives, exact in memory that does not grow with the number of candidates.

Shape letters: N queries, M keys, D their width, K left-out keys of a query.
"""

import torch


# Above this many similarities they are computed tile by tile; a smaller matrix is faster in one piece.
TILED_ABOVE = 2**22
ROWS, COLUMNS = 1024, 2048


def masked_logsumexp(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor | float,
    left_out: torch.Tensor | None = None,
    tiled: bool | None = None,
    log_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    log sum_j w_ij exp(scale * <q_i, k_j>) over the keys j that are not left out, for each query i.

    Args:
        queries: (N, D), fp32 or fp64.
        keys: (M, D).
        scale: a number or a tensor of shape (), which gets its gradient.
        left_out: (N, K) keys of each query that do not count; two of them may be equal.
        tiled: whether to hold one tile of the similarities at a time, forward and (recomputed) backward; by default
            where there are many. Differentiable once then.
        log_weights: (N, M) ln w, -inf for a weight of zero, which leaves the key out; constant to the gradient. All
            weights are one where unset; set, they take the memory of all similarities.

    Returns:
        (N,); 0, without gradient, for a query whose weights are all zero.
    """
    if tiled is None:
        tiled = len(queries) * len(keys) > TILED_ABOVE
    if left_out is None:
        left_out = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    log_weights = None if log_weights is None else log_weights.detach()
    if tiled:
        return _TiledLogSumExp.apply(queries, keys, torch.as_tensor(scale).to(queries), left_out, log_weights)
    logits = (scale * queries @ keys.T).scatter(1, left_out, -torch.inf)
    if log_weights is None:
        return logits.logsumexp(dim=1)
    logits = logits + log_weights
    is_empty = logits.isneginf().all(dim=1)
    return logits.masked_fill(is_empty[:, None], 0).logsumexp(dim=1).masked_fill(is_empty, 0)


class _TiledLogSumExp(torch.autograd.Function):
    """
    A running log-sum-exp over tiles; the backward pass computes each tile again from the saved result.

    The idea is that of Inf-CL (Cheng et al. 2024, arXiv 2410.17243).
    """

    @staticmethod
    def forward(ctx, queries, keys, scale, left_out, log_weights):
        normaliser = queries.new_full((len(queries),), -torch.inf)
        for rows, columns in _tiles(len(queries), len(keys)):
            tile = _similarities(queries, keys, scale, left_out, log_weights, rows, columns)
            normaliser[rows] = torch.logaddexp(normaliser[rows], tile.logsumexp(dim=1))
        normaliser.masked_fill_(normaliser.isneginf(), 0)
        ctx.save_for_backward(queries, keys, scale, left_out, log_weights, normaliser)
        return normaliser

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        queries, keys, scale, left_out, log_weights, normaliser = ctx.saved_tensors
        d_queries, d_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        for rows, columns in _tiles(len(queries), len(keys)):
            weights = _similarities(queries, keys, scale, left_out, log_weights, rows, columns)
            weights.sub_(normaliser[rows, None]).exp_().mul_(gradient[rows, None])
            d_queries[rows].addmm_(weights, keys[columns])
            d_keys[columns].addmm_(weights.T, queries[rows])
        d_scale = torch.linalg.vecdot(d_queries, queries).sum()
        return d_queries.mul_(scale), d_keys.mul_(scale), d_scale, None, None


def _tiles(num_rows: int, num_columns: int):
    for row in range(0, num_rows, ROWS):
        for column in range(0, num_columns, COLUMNS):
            yield slice(row, min(row + ROWS, num_rows)), slice(column, min(column + COLUMNS, num_columns))


def _similarities(queries, keys, scale, left_out, log_weights, rows: slice, columns: slice) -> torch.Tensor:
    """One tile of scale * queries @ keys.T + log_weights, -inf at the keys that are left out."""
    tile = (queries[rows] @ keys[columns].T).mul_(scale)
    if log_weights is not None:
        tile.add_(log_weights[rows, columns])
    left_out = left_out[rows]
    row, which = ((left_out >= columns.start) & (left_out < columns.stop)).nonzero(as_tuple=True)
    tile[row, left_out[row, which] - columns.start] = -torch.inf
    return tile
