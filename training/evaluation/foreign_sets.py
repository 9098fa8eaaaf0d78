"""
Images that are not of the data, for the question whether a model notices.

Shape letters: n images, C channels, H height, W width.
"""

import torch
from sklearn.datasets import load_sample_images


def foreign_sets(levels: torch.Tensor, num_levels: int, num_images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """
    Eight kinds of images that are not of the data, each (n, C, H, W) levels, n at most `num_images`.

    Five are made from `levels`, images of the test split, so that nothing but the named property gives them away.
    """
    generator = torch.Generator().manual_seed(seed)
    base = levels[torch.randperm(len(levels), generator=generator)[:num_images]]
    shape, top = base.shape, num_levels - 1

    def random_levels(*size: int) -> torch.Tensor:
        return torch.randint(0, num_levels, size, generator=generator, dtype=torch.uint8)

    partners = base[torch.randperm(len(base), generator=generator)]
    return {
        "noise": random_levels(*shape),
        "constant": random_levels(*shape[:2], 1, 1).expand(shape),
        "inverted": top - base,
        "dimmed": (base.float() / 2).round().to(torch.uint8),
        "rotated": base.rot90(1, dims=(2, 3)),
        "blended": ((base.float() + partners.float()) / 2).round().to(torch.uint8),
        "shuffled_blocks": _shuffle_blocks(base, generator),
        "photographs": _photographs(shape, num_levels, generator),
    }


def _shuffle_blocks(levels: torch.Tensor, generator: torch.Generator, num_blocks: int = 4) -> torch.Tensor:
    """Each image cut into a grid of `num_blocks` x `num_blocks`, the blocks in random order."""
    n, channels, side, _ = levels.shape
    block = side // num_blocks
    kept = levels[..., : block * num_blocks, : block * num_blocks]
    blocks = kept.reshape(n, channels, num_blocks, block, num_blocks, block).permute(0, 2, 4, 1, 3, 5)
    blocks = blocks.reshape(n, num_blocks**2, channels, block, block)
    order = torch.rand(n, num_blocks**2, generator=generator).argsort(1)
    blocks = blocks[torch.arange(n)[:, None], order].view(n, num_blocks, num_blocks, channels, block, block)
    shuffled = levels.clone()
    shuffled[..., : block * num_blocks, : block * num_blocks] = blocks.permute(0, 3, 1, 4, 2, 5).reshape(kept.shape)
    return shuffled


def _photographs(shape: torch.Size, num_levels: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops, a quarter to a half of the height, of the two photographs that scikit-learn ships, scaled down."""
    n, channels, side, _ = shape
    crops = []
    photographs = [
        torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255 for photo in load_sample_images().images
    ]
    for i in range(n):
        photo = photographs[i % len(photographs)]
        height, width = photo.shape[1:]
        size = int(height * (0.25 + 0.25 * torch.rand((), generator=generator).item()))
        y = int(torch.randint(0, height - size, (), generator=generator))
        x = int(torch.randint(0, width - size, (), generator=generator))
        crop = photo[:, y : y + size, x : x + size]
        crop = crop.mean(0, keepdim=True) if channels == 1 else crop
        crops.append(torch.nn.functional.interpolate(crop[None], size=(side, side), mode="area")[0])
    return (torch.stack(crops) * (num_levels - 1)).round().to(torch.uint8)
