"""
Images that are the same to the eye, and images that look alike.

Shape letters: N images, S side of a fingerprint, F frequencies, P width of a feature, M pairs, K neighbours.
"""

import numpy as np
import torch

from .progress import Progress


# Neighbours by spectra that are compared pixel by pixel.
_NUM_CANDIDATES = 8
# Lower frequencies are what a small shift, other light or a JPEG file leave as they are.
_NUM_FREQUENCIES = 9
# What a shift moves out of a picture and into it may cost the spectra this much.
_SLACK = 0.02
# Of the correlation of near duplicates, if the pictures are to say it.
_THRESHOLDS = 0.95, 0.99
_LOOK_ALIKES = 3
_BLOCK = 1024


def nearest(vectors: torch.Tensor, num: int, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosines and numbers (N, K) of the nearest among vectors (N, P) of length 1, but for each itself, on the CPU; K is
    `num`, or N - 1 where that is less. There is never a matrix (N, N).
    """
    found, num = [], min(num, len(vectors) - 1)
    for rows in torch.arange(len(vectors), device=vectors.device).split(max(1, 2**24 // len(vectors))):
        cosines = vectors[rows] @ vectors.T
        cosines[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        found.append([part.cpu() for part in cosines.topk(num, dim=1)])
        progress.update(len(rows))
    cosines, numbers = zip(*found, strict=True)
    return torch.cat(cosines), torch.cat(numbers)


def near_duplicates(
    fingerprints: np.ndarray, threshold: float | None, device: torch.device, progress: Progress
) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Pairs of pictures whose pixels correlate at least by `threshold`, after a shift of an eighth of the side at most.

    No circular shift correlates more than the absolute spectra do (triangle inequality), which no shift changes: only
    neighbours by these are compared. Brightness and contrast of a whole picture change neither.

    Args:
        fingerprints: (N, S, S, 3), uint8.
        threshold: chosen by the pictures, if `None`: how much their eighth neighbours correlate says what is no
            duplicate, and the plainer pictures are, the more.

    Returns:
        pairs (M, 2), the lower number first, their correlations (M,), and the threshold.
    """
    spectra = torch.cat([_spectra(_centred(part, device)) for part in _blocks(fingerprints)])
    cosines, numbers = nearest(spectra, _NUM_CANDIDATES, progress)

    def correlations(pairs: np.ndarray) -> np.ndarray:
        parts = [
            _correlations(*(_centred(fingerprints[part[:, i]], device) for i in (0, 1))) for part in _blocks(pairs)
        ]
        return torch.cat([torch.empty(0), *(part.cpu() for part in parts)]).numpy()

    if threshold is None:
        far = [(i, of_image[-1]) for i, of_image in enumerate(numbers.tolist()) if of_image][
            :: 1 + len(numbers) // _BLOCK
        ]
        typical = float(np.quantile(correlations(np.array(far)), 0.9)) if far else 1
        threshold = float(np.clip(1 - (1 - typical) / 8, *_THRESHOLDS))
    close = (cosines >= threshold - _SLACK).nonzero()
    pairs = (
        torch.stack([close[:, 0], numbers[close[:, 0], close[:, 1]]], dim=1).sort(dim=1).values.unique(dim=0).numpy()
    )
    found = correlations(pairs)
    return pairs[found >= threshold], found[found >= threshold], threshold


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _centred(fingerprints: np.ndarray, device: torch.device) -> torch.Tensor:
    """(N, 3, S, S), fp32, with mean 0."""
    pictures = torch.from_numpy(fingerprints).to(device).float().movedim(-1, 1)
    return pictures - pictures.mean(dim=(1, 2, 3), keepdim=True)


def _spectra(pictures: torch.Tensor) -> torch.Tensor:
    """Sizes of the lower frequencies, (N, F) of length 1."""
    sizes = torch.fft.rfft2(pictures).abs()[..., :_NUM_FREQUENCIES]
    sizes = torch.cat([sizes[..., :_NUM_FREQUENCIES, :], sizes[..., 1 - _NUM_FREQUENCIES :, :]], dim=-2)
    return torch.nn.functional.normalize(sizes.flatten(1))


def _correlations(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Of pictures (M, 3, S, S) where they overlap after the shift that fits best; 0 for what is flat. (M,)"""
    side = left.shape[-1]
    product = torch.fft.rfft2(left) * torch.fft.rfft2(right).conj()
    fits = torch.fft.irfft2(product.sum(dim=1), s=(side, side))
    steps = torch.arange(-side // 8, side // 8 + 1, device=left.device)
    best = fits[:, steps[:, None], steps].flatten(1).argmax(dim=1)
    shifts = torch.stack([steps[best // len(steps)], steps[best % len(steps)]], dim=1)
    found = torch.zeros(len(left), device=left.device)
    for y, x in shifts.unique(dim=0).tolist():
        of_shift = (shifts == torch.tensor([y, x], device=left.device)).all(dim=1)
        parts = [
            picture[of_shift, :, max(0, dy) : side + min(0, dy), max(0, dx) : side + min(0, dx)].flatten(1)
            for picture, dy, dx in ((left, y, x), (right, -y, -x))
        ]
        found[of_shift] = torch.cosine_similarity(*(part - part.mean(dim=1, keepdim=True) for part in parts))
    return found


def look_alikes(features: torch.Tensor, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """
    Pairs of images, each among the three nearest of the other, and nearer than half of all nearest neighbours are.

    Args:
        features: (N, P).

    Returns:
        pairs (M, 2), and the cosines (M,) of their features.
    """
    cosines, numbers = nearest(torch.nn.functional.normalize(features), _LOOK_ALIKES, progress)
    rows = torch.arange(len(features))[:, None]
    is_mutual = (numbers[numbers] == rows[..., None]).any(dim=2)
    keep = is_mutual & (cosines >= cosines[:, :1].median()) & (rows < numbers)
    return torch.stack([rows.expand_as(numbers)[keep], numbers[keep]], dim=1).numpy(), cosines[keep].numpy()


def joined(pairs: np.ndarray, values: np.ndarray, num: int) -> tuple[list[list[int]], list[float]]:
    """
    The numbers below `num`, put together where pairs (M, 2) join them, directly or over others; and for each number the
    highest of the values (M,) of its pairs, 0 without any.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(num, num))
    _, labels = connected_components(links, directed=False)
    best = np.zeros(num)
    np.maximum.at(best, pairs.ravel(), values.repeat(2))
    return by_label(labels.tolist()), best.tolist()


def by_label(labels: list) -> list[list[int]]:
    """Numbers of the same label, in the order in which labels appear."""
    found: dict = {}
    for i, label in enumerate(labels):
        found.setdefault(label, []).append(i)
    return list(found.values())
