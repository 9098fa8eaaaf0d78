"""
How little must change in an image for the linear probe to misread it? An attack with gradients, beside the same on raw
pixels.

Projected gradient descent (Madry et al. 2018, arXiv 1706.06083, equation 1 and section 5.2) in whole levels, which are
all that the model sees. What differs: it starts at the image itself and not somewhere around it, so that no image is
read right again by chance; it lowers the margin of the right class, which unlike the cross-entropy has a slope where
the probe is sure; and the slope of a level is that of the embedding table at this level.

Shape letters: N images, C channels, H height, W width, S patches, K codes of a patch, P width of a feature, Y classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.pipeline import Pipeline

from modeling_hybrid import HybridModel
from modeling_hybrid.patch_codes import levels_to_codes

from ...data.images import evenly
from ..subject import Findings, Subject


MAX_TEST_IMAGES = 256
NUM_STEPS = 10
# Images that a gradient is computed for at a time; it holds the states of every layer.
BATCH_SIZE = 32

# Features (N, P) -> the class that each is taken for, (N,), and by how much its logit leads, (N,).
Reader = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
# Levels (N, ...), int64 -> the class that each image is taken for, (N,), and the slope of its lead in each level.
Victim = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def evaluate(subject: Subject) -> Findings:
    """
    Accuracy under attack, and under noise of the same size, at a budget of about 8/255 of the range, of at most 256
    test images (`evaluation.max_subpixels`: fewer large ones); nothing without labels.

    By budget, in levels: that of no change, of the least change there is, of this one, and of twice as much. Of each
    test image: whether it is read right under attack, NaN where it is not tried.
    """
    if subject.labels is None:
        return Findings()
    config, device = subject.model.config, subject.model.device
    tried = evenly(len(subject.levels["test"]), subject.affordable(MAX_TEST_IMAGES))
    levels = subject.levels["test"][tried].to(device)
    labels = torch.from_numpy(subject.labels["test"][tried]).to(device)
    codes = levels_to_codes(levels, config)
    model_reader, pixel_reader = (as_reader(subject.linear_probe(prefix), device) for prefix in ("", "pixel_"))
    victims = {
        "": (codes, of_codes(subject.model.encoder, model_reader)),
        "pixel_": (levels.long(), of_pixels(pixel_reader)),
    }

    budget = max(1, round(8 / 255 * (config.num_levels - 1)))
    results = {"adversarial_budget": budget}
    correct = {
        prefix: correct_by_budget(*victim, labels, budget, config.num_levels) for prefix, victim in victims.items()
    }
    for prefix, changes in correct.items():
        for change, by_budget in changes.items():
            accuracies = {str(size): float(values.mean()) for size, values in by_budget.items()}
            results[f"{prefix}{change}_accuracy"] = accuracies[str(budget)]
            results[f"{prefix}{change}_accuracy_by_budget"] = accuracies
    per_image = np.full(len(subject.levels["test"]), np.nan)
    per_image[tried] = correct[""]["adversarial"][budget]
    return Findings(results, {"adversarial_correct": per_image}, {"test": len(tried)})


def correct_by_budget(
    images: torch.Tensor, victim: Victim, labels: torch.Tensor, budget: int, num_levels: int
) -> dict[str, dict[int, np.ndarray]]:
    """
    Which images (N, ...) are read right, (N,), under attack (`adversarial`) and under noise (`sign_noise`), each at
    budgets of 0, 1, `budget` and twice `budget`.
    """
    attacked, under_attack, under_noise = images, {}, {}
    for size in sorted({0, 1, budget, 2 * budget}):
        # From the smaller attack on: what it misled stays misled.
        attacked = attack(images, attacked, labels, victim, size, num_levels)
        noisy = add_sign_noise(images, size, num_levels)
        under_attack[size], under_noise[size] = ((victim(x)[0] == labels).cpu().numpy() for x in (attacked, noisy))
    return {"adversarial": under_attack, "sign_noise": under_noise}


def attack(
    images: torch.Tensor, start: torch.Tensor, labels: torch.Tensor, victim: Victim, budget: int, num_levels: int
) -> torch.Tensor:
    """
    Images that the victim is to misread, no level of them more than `budget` from that of `images`.

    An image is left as it is once it is misread. Pseudocode, image by image:

        for each step:
            if victim(image) is right:
                image -= step_size * sign(slope of the lead of the right class)
                image = clip(image, original - budget, original + budget), within 0..num_levels-1

    Args:
        images: (N, ...) levels, int64.
        start: where to set out from, within `budget` of `images`.
        labels: (N,) classes as integers.
    """
    step_size = max(1, round(2.5 * budget / NUM_STEPS))
    lowest, highest = (images - budget).clamp(min=0), (images + budget).clamp(max=num_levels - 1)
    attacked, left = start.clone(), torch.arange(len(images), device=images.device)
    for _ in range(NUM_STEPS if budget else 0):
        predicted, slopes = victim(attacked[left])
        is_right = predicted == labels[left]
        left, slopes = left[is_right], slopes[is_right]
        if len(left) == 0:
            break
        attacked[left] = (attacked[left] - step_size * slopes.sign().long()).clamp(lowest[left], highest[left])
    return attacked


def add_sign_noise(images: torch.Tensor, budget: int, num_levels: int) -> torch.Tensor:
    """Every level of images (N, ...) up or down by `budget`, by chance: an attack must be worse than this."""
    signs = 2 * torch.randint(2, images.shape, generator=torch.Generator().manual_seed(0)) - 1
    return (images + budget * signs.to(images.device)).clamp(0, num_levels - 1)


def as_reader(probe: Pipeline, device: torch.device | str) -> Reader:
    """A fitted linear probe (features scaled to length one, standardised, logistic regression), differentiable."""
    scaler, regression = probe["standardscaler"], probe["logisticregression"]
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) == 1:
        # Of two classes, scikit-learn gives the log of the odds of the second.
        weight, bias = np.stack([np.zeros_like(weight[0]), weight[0]]), np.array([0, bias[0]])
    mean, scale, weight, bias = (
        torch.tensor(values, dtype=torch.float32, device=device)
        for values in (scaler.mean_, scaler.scale_, weight, bias)
    )
    classes = torch.tensor(regression.classes_, device=device)

    def reader(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        standardised = (torch.nn.functional.normalize(features) - mean) / scale
        best, chosen = (standardised @ weight.T + bias).topk(2)
        return classes[chosen[:, 0]], best[:, 0] - best[:, 1]

    return reader


def of_pixels(reader: Reader) -> Victim:
    """The probe on raw pixels, of levels (N, C, H, W)."""

    def victim(levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = levels.float().requires_grad_()
        predicted, lead = reader(pixels.flatten(1))
        return predicted, torch.autograd.grad(lead.sum(), pixels)[0]

    return victim


def of_codes(encoder: HybridModel, reader: Reader) -> Victim:
    """
    The probe on the features of an encoder, of codes (N, S, K).

    A code is looked up in a table, which has no slope in the code. Half the difference of the two neighbouring rows
    stands in for it: how the embedding would move if the code grew by one level.
    """
    embedding = encoder.embeddings.code_embedding
    rows_per_level = torch.gradient(embedding.weight.detach(), dim=0)[0]

    def look(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        growth = torch.zeros(codes.shape, device=codes.device, requires_grad=True)

        def grow(_, arguments: tuple[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
            return rows + growth[..., None] * rows_per_level[arguments[0]]

        with embedding.register_forward_hook(grow):
            predicted, lead = reader(encoder(codes=codes).pooler_output)
        return predicted, torch.autograd.grad(lead.sum(), growth)[0]

    def victim(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        predicted, slopes = zip(*map(look, codes.split(BATCH_SIZE)), strict=True)
        return torch.cat(predicted), torch.cat(slopes)

    return victim
