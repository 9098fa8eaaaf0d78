"""
How codes are drawn from their distributions: by the inverse of the distribution function, one random number each.

Shape letters: N states, L levels.
"""

from collections.abc import Callable

import torch


class Draw:
    """
    Args:
        warp: what temperature, top-p and the like make of logits (N, L); `None` leaves them as they are.
        is_greedy: take the likeliest level instead.
        generator: source of randomness on the model's device; torch's default one if unset.
    """

    def __init__(
        self,
        warp: Callable[[torch.Tensor], torch.Tensor] | None = None,
        is_greedy: bool = False,
        generator: torch.Generator | None = None,
    ):
        self.warp = warp
        self.is_greedy = is_greedy
        self.generator = generator

    @property
    def is_plain(self) -> bool:
        """Whether codes come from the very distributions of the model."""
        return self.warp is None and not self.is_greedy

    def uniform(self, num: int, device: torch.device) -> torch.Tensor:
        """Random numbers in [0, 1), (num,)."""
        return torch.rand(num, generator=self.generator, device=device)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, L) -> one level each, (N,)."""
        logits = logits.float()
        if self.warp is not None:
            logits = self.warp(logits)
        if self.is_greedy:
            return logits.argmax(-1)
        distribution = logits.softmax(-1).cumsum(-1)
        # A hair below the total, so that rounding cannot reach past the last level that has a probability.
        point = self.uniform(len(logits), logits.device)[:, None] * (distribution[:, -1:] * (1 - 2**-22))
        return torch.searchsorted(distribution, point, right=True)[:, 0]


class GuidedDraw(Draw):
    """
    Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): logits (2 * N, L), first those given the
    condition, then those of the same codes without, -> one level each, the same in both halves, (2 * N,). It is drawn
    from `without + scale * (given - without)`, in log-probabilities, as in transformers; then comes the `warp`.
    """

    def __init__(self, scale: float, draw: Draw):
        super().__init__(draw.warp, draw.is_greedy, draw.generator)
        self.scale = scale

    @property
    def is_plain(self) -> bool:
        return False

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        given, without = logits.float().log_softmax(-1).chunk(2)
        return super().__call__(without + self.scale * (given - without)).repeat(2)
