"""
What does the feature know of its image? Bits that it saves the likelihood, and images that are drawn from it.

Shape letters: N images, P width of the pooled feature.
"""

import math

import numpy as np
import torch

from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.patch_codes import codes_to_levels

from ...metrics.out_of_distribution.out_of_distribution import auroc_and_fpr95
from ...reports import pictures
from ..subject import Findings, Subject


NUM_SHOWN, NUM_SHOWN_VARIATIONS = 12, 8


def evaluate(subject: Subject) -> Findings:
    """
    Bits of each test image that its own feature explains ([`HybridForImageGeneration.information`]), and those that the
    feature of another test image does; how near variations are to what they were drawn from ([`closeness`]), and
    pictures ([`show`]). Nothing where the decoder is told no features.
    """
    if subject.model.config.decoder_condition != "features":
        return Findings()
    levels, features = subject.levels["test"], torch.from_numpy(subject.features["test"])
    bits = information(subject, levels, features)
    results = {
        "information_bits": float(bits.mean()),
        "information_bits_per_dim": float(bits.mean()) / subject.model.config.num_dims,
        "information_bits_of_another": float(information(subject, levels, features.roll(1, dims=0)).mean()),
    }
    num_varied = min(subject.affordable(subject.config.evaluation.num_out_of_distribution), len(levels))
    generator = torch.Generator(subject.model.device).manual_seed(subject.config.seed)
    variations = draw_from(subject, features[:num_varied], generator)
    if num_varied > 1:
        drawn = subject.embed(variations).features
        results |= closeness(subject.features["test"][:num_varied], drawn, subject.features["train"].mean(axis=0))
    show(subject, levels[:NUM_SHOWN], features[:NUM_SHOWN], generator)
    return Findings(results, {"information_bits": bits}, {"variations": num_varied})


@torch.no_grad()
def information(subject: Subject, levels: torch.Tensor, features: torch.Tensor) -> np.ndarray:
    """Bits that features (N, P) save for levels (N, C, H, W), (N,)."""
    model, size = subject.model, subject.batch_size
    batches = zip(levels.split(size), features.split(size), strict=True)
    bits = [
        model.information(levels_to_pixels(images, model.config.num_levels).to(model.device), rows.to(model.device))
        for images, rows in batches
    ]
    return torch.cat(bits).float().cpu().numpy()


def draw_from(
    subject: Subject, features: torch.Tensor, generator: torch.Generator, guidance_scale: float = 1.0
) -> torch.Tensor:
    """One image for each of features (N, P): levels (N, C, H, W)."""
    model = subject.model
    settings = {"generator": generator, "guidance_scale": guidance_scale}
    codes = [model.generate(features=rows.to(model.device), **settings) for rows in features.split(subject.batch_size)]
    return codes_to_levels(torch.cat(codes), model.config).cpu()


def closeness(given: np.ndarray, drawn: np.ndarray, centre: np.ndarray) -> dict[str, float]:
    """
    Cosines between features (N, P) that were given and those of the images drawn from them, both around the mean of the
    training features, `centre` (P,): the mean of right pairs and of wrong ones (the next image's), and the AUROC of
    telling the two apart.
    """
    given, drawn = (rows - centre for rows in (given, drawn))
    given, drawn = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (given, drawn))
    right, wrong = (given * drawn).sum(axis=1), (np.roll(given, 1, axis=0) * drawn).sum(axis=1)
    is_right = np.repeat([False, True], len(right))
    return {
        "variation_cosine": float(right.mean()),
        "variation_cosine_of_another": float(wrong.mean()),
        "variation_auroc": auroc_and_fpr95(np.concatenate([wrong, right]), is_right)["auroc"],
    }


def show(subject: Subject, levels: torch.Tensor, features: torch.Tensor, generator: torch.Generator) -> None:
    """
    `variations.png`: in each row an image, then what is drawn from its feature. `interpolations.png`: in each row an
    image, what is drawn between its feature and the next image's, and that image. `information_map.png` ([`maps`]).
    """
    columns = [levels] + [draw_from(subject, features, generator) for _ in range(NUM_SHOWN_VARIATIONS)]
    _sheet(subject, columns, "variations.png")
    ends = levels.roll(-1, dims=0), features.roll(-1, dims=0)
    # With the same random numbers in a row, so that nothing but the features moves.
    between = [
        draw_from(subject, features.lerp(ends[1], share), generator.manual_seed(subject.config.seed))
        for share in torch.linspace(0, 1, NUM_SHOWN_VARIATIONS).tolist()
    ]
    _sheet(subject, [levels, *between, ends[0]], "interpolations.png")
    path = subject.pictures / "information_map.png"
    pictures.patch_maps(subject.images(levels), maps(subject, levels, features), path)


def _sheet(subject: Subject, columns: list[torch.Tensor], name: str) -> None:
    images = subject.images(torch.stack(columns, dim=1).flatten(0, 1))
    pictures.sheet(images, subject.pictures / name, num_columns=len(columns))


@torch.no_grad()
def maps(subject: Subject, levels: torch.Tensor, features: torch.Tensor) -> dict[str, np.ndarray]:
    """
    Of levels (N, C, H, W), by title, patches in their places (N, side, side): where the model is surprised, and what
    features (N, P) save it there ([`HybridForImageGeneration.information_map`]).
    """
    model = subject.model
    pixel_values = levels_to_pixels(levels, model.config.num_levels).to(model.device)
    found = {
        "bits of a\npatch": model.nll_map(pixel_values) / math.log(2),
        "of these the\nfeature saves": model.information_map(pixel_values, features.to(model.device)),
    }
    side = model.config.image_size // model.config.patch_size
    return {title: rows.view(-1, side, side).float().cpu().numpy() for title, rows in found.items()}
