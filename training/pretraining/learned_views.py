"""
Augmented views that are learned beside the model: a network says what of an image they keep.

Shape letters: B images, C channels, H height, W width, S patches, K codes of a patch, L levels, D width of an
embedding, P width of the pooled feature.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from modeling_hybrid import HybridModel
from modeling_hybrid.levels import levels_to_shares
from modeling_hybrid.objectives.base import AUGMENTED
from modeling_hybrid.objectives.sep_clr import squared_distances
from modeling_hybrid.patch_codes import levels_to_codes

from ..config import PretrainConfig
from .run import Run


# Of AutoTCL: rate of the views, share of the pixels that is kept without a cost, and what a further one and edges cost.
LEARNING_RATE, BUDGET, BUDGET_WEIGHT, EDGE_WEIGHT = 1e-2, 0.4, 1e-3, 1e-3
# Ours: the logit of every pixel to be kept at the start, and what divides it where a gradient passes.
START_LOGIT, TEMPERATURE = 2.0, 0.5


class LearnedViews(nn.Module):
    """
    Images (B, C, H, W) in [0, 1] -> their views, after AutoTCL (Zheng et al. 2024, arXiv 2402.10434), which has views
    of time series:

        keep, scale = two numbers for each pixel, by convolutions of the image
        mask = 1 where keep + noise > 0, else 0          # logistic noise; the gradient is that of a sigmoid
        view = min(2 sigmoid(scale) * mask * image, 1)   # what is not kept is black

    The authors add the noise to sigmoids, which no mask close to 0 or 1 survives; here it is added to logits. At the
    start `keep` and `scale` are the same for all pixels, and scaling changes nothing.
    """

    def __init__(self, num_channels: int, width: int = 16):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(num_channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2, 3, padding=1),
        )
        nn.init.zeros_(self.network[-1].weight)
        self.network[-1].bias.data = torch.tensor([START_LOGIT, 0.0])

    def draw(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (B, C, H, W), and the probability of each pixel to be kept, (B, 1, H, W)."""
        keep, scale = self.network(images).split(1, dim=1)
        noise = torch.logit(torch.rand_like(keep), eps=1e-6)
        soft = torch.sigmoid((keep + noise) / TEMPERATURE)
        mask = (soft > 0.5).to(soft) + (soft - soft.detach())
        return (2 * torch.sigmoid(scale) * mask * images).clamp(max=1), torch.sigmoid(keep)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.draw(images)[0]


class InterpolatedEmbedding(nn.Module):
    """A table of levels that is read between them: levels (...), floats in 0..L-1, -> (..., D)."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.table = table

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        below = levels.detach().floor().clamp(max=self.table.num_embeddings - 2).long()
        return torch.lerp(self.table(below), self.table(below + 1), (levels - below)[..., None])


@contextmanager
def between_levels(encoder: HybridModel) -> Iterator[None]:
    """The encoder without dropout, which takes codes between the levels, and passes a gradient on to them."""
    table, was_training = encoder.get_input_embeddings(), encoder.training
    encoder.set_input_embeddings(InterpolatedEmbedding(table))
    encoder.eval()
    try:
        yield
    finally:
        encoder.set_input_embeddings(table)
        encoder.train(was_training)


def features(encoder: HybridModel, images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in [0, 1], not rounded to levels -> pooled features (B, P), as of augmented views."""
    config = encoder.config
    places = torch.arange(images[0].numel(), device=images.device).view_as(images[:1])
    codes = (images * (config.num_levels - 1)).flatten(1)[:, levels_to_codes(places, config)[0]]
    kinds = torch.full((len(images),), AUGMENTED, device=images.device)
    with between_levels(encoder):
        states = encoder.encode(codes, kinds, is_causal=config.features_are_causal)
        return encoder.pooler(states[:, 1:])


def squared_mmd(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """
    The squared maximum mean discrepancy of rows (B, P) and (B, P), 0 where they are equal, under a Gaussian kernel
    whose width is that of the first rows.
    """
    num = len(ours)
    squares = squared_distances(torch.cat([ours, theirs])[None])[0]
    width = squares[:num, :num].mean().detach().clamp(min=1e-12)
    kernel = (-squares / width).exp()
    return kernel[:num, :num].mean() + kernel[num:, num:].mean() - 2 * kernel[:num, num:].mean()


def view_loss(views: LearnedViews, encoder: HybridModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What the views are to keep low, of images (B, C, H, W) in [0, 1]: the distance of their features from those of the
    images, with a cost for more pixels than the budget and for edges of what is kept. And the share that is kept.
    """
    drawn, kept = views.draw(images)
    with torch.no_grad():
        wanted = features(encoder, images)
    edges = (kept.diff(dim=2).abs().mean() + kept.diff(dim=3).abs().mean()) / 2
    excess = (kept.mean() - BUDGET).relu()
    loss = squared_mmd(wanted, features(encoder, drawn)) + BUDGET_WEIGHT * excess + EDGE_WEIGHT * edges
    return loss, kept.mean()


class RunOfLearnedViews(Run):
    """
    A run whose augmented views are drawn by a network, which takes a step of its own before each step of the model, on
    the same images and with the encoder as it stands. The operations of the configuration follow its views.

    Raises:
        ValueError: there are several processes, whose networks would differ.
    """

    def __init__(self, config: PretrainConfig, accelerator: Accelerator):
        if accelerator.num_processes > 1:
            raise ValueError(
                f"augmentation.learned=true learns views on one process, not on {accelerator.num_processes}; start "
                "one, or set it to false."
            )
        super().__init__(config, accelerator)
        self.learned = LearnedViews(self.bare_model.config.num_channels).to(accelerator.device)
        self.view_optimizer = torch.optim.AdamW(self.learned.parameters(), LEARNING_RATE, weight_decay=0)
        self.views.augment = nn.Sequential(self.learned, *self.views.augment)
        self.views.operations[AUGMENTED] = self.views.augment

    def parts_that_learn(self) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        model, optimizers = super().parts_that_learn()
        return nn.ModuleDict({"model": model, "views": self.learned}), [*optimizers, self.view_optimizer]

    def step(self, levels: torch.Tensor, sample_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        told = self.learn_views(levels)
        return super().step(levels, sample_ids) | told

    def learn_views(self, levels: torch.Tensor) -> dict[str, torch.Tensor]:
        """A step of the views on levels (B, C, H, W): their loss, and the share of the pixels that they keep."""
        model = self.bare_model
        loss, kept = view_loss(self.learned, model.encoder, levels_to_shares(levels, model.config.num_levels))
        self.view_optimizer.zero_grad()
        # Of the views alone: the model's gradients are those of its own losses.
        loss.backward(inputs=list(self.learned.parameters()))
        self.view_optimizer.step()
        return {"view_loss": loss.detach(), "kept_share": kept.detach()}


def build_run(config: PretrainConfig, accelerator: Accelerator) -> Run:
    return (RunOfLearnedViews if config.augmentation.learned else Run)(config, accelerator)
