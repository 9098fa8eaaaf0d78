"""The one place where objectives look at other processes."""

import torch
from torch import distributed


def rank_and_world_size() -> tuple[int, int]:
    """(0, 1) where no process group runs."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class _GatherWithGradient(torch.autograd.Function):
    """All shards forward; backward, the sum over processes of the gradients of one's own shard."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        shards = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(shards, tensor.contiguous())
        return torch.stack(shards)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def gather(projections: torch.Tensor) -> torch.Tensor:
    """
    Projections of all processes, in the order of ranks: (V, B, D) -> (V, G, D), with gradient.

    A loss that is the mean over local anchors against these keys has, after the averaging of gradients that DDP does,
    exactly the gradient of the mean over all anchors in one process. Every process must hold the same B.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return projections
    return _GatherWithGradient.apply(projections).transpose(0, 1).flatten(1, 2)
