"""The matrix products of a computation, and what they take by themselves."""

import statistics
import time
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm)


class MatrixProducts(TorchDispatchMode):
    """
    Counts the products of matrices (..., n, k) and (..., k, m) that are computed in it: `counts` by their two shapes.

    Fused attention counts as the products that it is made of: two forward, and five backward, one of which computes its
    scores again; a causal one as if every position were seen. (`torch.utils.flop_counter` leaves it out on the CPU.)
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[tuple[torch.Size, torch.Size]] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
        if operation.overloadpacket in PRODUCTS:
            self.counts[tensors[-2].shape, tensors[-1].shape] += 1
        elif "scaled_dot_product" in operation.name():
            is_backward = "backward" in operation.name()
            query, key = tensors[is_backward : is_backward + 2]  # after the gradient of the output
            scores = query.shape[:-1] + key.shape[-2:-1]
            self.counts[query.shape, key.mT.shape] += 1 + is_backward
            self.counts[scores, key.shape] += 1 + 2 * is_backward
        return operation(*args, **(kwargs or {}))

    def flops(self) -> int:
        return sum(2 * left.numel() * right[-1] * count for (left, right), count in self.counts.items())

    def seconds(self, repeats: int = 20) -> float:
        """What all of them take, each computed by itself: median seconds of a call, times their number."""
        return sum(count * _seconds_of_product(*shapes, repeats) for shapes, count in self.counts.items())


def _seconds_of_product(left: torch.Size, right: torch.Size, repeats: int) -> float:
    left, right, measured = torch.randn(left), torch.randn(right), []
    product = left @ right
    for _ in range(repeats):
        began = time.perf_counter()
        torch.matmul(left, right, out=product)
        measured.append(time.perf_counter() - began)
    return statistics.median(measured)
