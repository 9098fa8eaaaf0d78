"""How healthy a representation is: four values that need no labels."""

import torch


def alignment(projections: torch.Tensor) -> torch.Tensor:
    """
    Mean squared distance between the views of a sample (Wang and Isola 2020, arXiv 2005.10242): (V, B, D) -> ().
    """
    centred = projections - projections.mean(dim=0)
    num_views = len(projections)
    return 2 * num_views / (num_views - 1) * centred.square().sum(-1).mean()


def uniformity(projections: torch.Tensor) -> torch.Tensor:
    """
    log mean exp(-2 |x - y|^2) over pairs of different samples of a view (Wang and Isola 2020): (V, B, D) -> ().
    Zero when all rows are equal, lower when they spread.
    """
    batch_size = projections.shape[1]
    squared = 2 - 2 * projections @ projections.transpose(1, 2)
    squared = squared.masked_fill(torch.eye(batch_size, dtype=torch.bool, device=squared.device), torch.inf)
    num_pairs = len(projections) * batch_size * (batch_size - 1)
    return torch.logsumexp(-2 * squared.flatten(), dim=0) - torch.tensor(float(num_pairs)).log()


def nearest_is_positive(projections: torch.Tensor) -> torch.Tensor:
    """Share of the rows (V, B, D) whose nearest other row is a view of the same sample: ()."""
    num_views, batch_size, _ = projections.shape
    rows = projections.flatten(0, 1)
    similarities = (rows @ rows.T).fill_diagonal_(-torch.inf)
    sample = torch.arange(batch_size, device=rows.device).repeat(num_views)
    positives = similarities.masked_fill(sample[:, None] != sample, -torch.inf)
    return (positives.amax(1) >= similarities.amax(1)).float().mean()


def effective_rank(rows: torch.Tensor) -> torch.Tensor:
    """
    RankMe (Garrido et al. 2023, arXiv 2210.02885): exp of the entropy of the singular values of (N, D) -> ().
    From 1, all rows on one line, to min(N, D).
    """
    # By the small Gram matrix, which squares the singular values: hence the doubled precision.
    rows = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    # Rows that are not finite have no rank; the decomposition would raise an error of its own.
    singular = torch.linalg.eigvalsh(gram.nan_to_num(0, 0, 0)).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(rows.dtype).tiny)
    rank = torch.special.entr(share).sum().exp()
    return torch.where(gram.isfinite().all(), rank, torch.nan)
