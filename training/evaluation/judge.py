"""
The eyes that pictures are compared by: by default a small classifier of real images, with no weights to download.

It is a function of the training images alone, the same for every model of one data set, so that results of different
models can be put side by side. Shape letters: N images, C channels, H height, W width, P width of a feature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

from modeling_hybrid.levels import change_levels, levels_to_pixels, levels_to_shares

from ..hardware import fork_rng
from .subject import Subject


# Levels (N, C, H, W) -> features (N, P), in double precision.
Features = Callable[[torch.Tensor], torch.Tensor]
NUM_COMPONENTS = 64
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 300, 64, 3e-3
# A picture is legible if the judge sees some class with a probability of this at least.
LEGIBLE = 0.9


@dataclass(frozen=True)
class Space:
    """
    What images are compared by.

    Args:
        facts: what to report of it.
        certainty: levels (N, C, H, W) -> the probability (N,) of the class that the judge sees; `None` without a judge.
    """

    features: Features
    facts: dict[str, str | float]
    certainty: Features | None = None

    def legibility(self, levels: torch.Tensor, prefix: str = "") -> dict[str, float]:
        """`legible_share` ([`LEGIBLE`]) of images, levels (N, C, H, W); nothing without a judge."""
        if self.certainty is None:
            return {}
        return {f"{prefix}legible_share": float((self.certainty(levels) >= LEGIBLE).double().mean())}


def feature_space(subject: Subject) -> Space:
    """
    `evaluation.generation_features` decides: InceptionV3, or a classifier of the training images ([`train_judge`]), in
    whose place principal components of the pixels stand where there are no labels.

    Raises:
        ModuleNotFoundError: InceptionV3 without torch-fidelity.
    """
    num_levels, device = subject.model.config.num_levels, subject.model.device
    if subject.config.evaluation.generation_features == "inception":
        # Not importable by its own name where torch-fidelity is missing.
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device)

        def inception(levels: torch.Tensor) -> torch.Tensor:
            return network(change_levels(levels, num_levels, 256).expand(-1, 3, -1, -1))

        return Space(_in_batches(inception, subject), {"generation_feature_space": "2048 features of InceptionV3"})
    if subject.labels is None:

        def shares(levels: torch.Tensor) -> np.ndarray:
            return levels_to_shares(levels, num_levels).flatten(1).numpy()

        pixels = subject.pixels["train"]
        components = PCA(min(NUM_COMPONENTS, *pixels.shape), random_state=0).fit(shares(subject.levels["train"]))
        name = f"first {components.n_components} principal components of the pixels of the training images"

        def project(levels: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(components.transform(shares(levels))).double()

        return Space(project, {"generation_feature_space": name})

    judge = train_judge(subject.levels["train"], subject.labels["train"], num_levels, device)

    def read(layers: nn.Module) -> Features:
        return _in_batches(lambda levels: layers(levels_to_pixels(levels, num_levels)), subject)

    scaler = StandardScaler().fit(read(judge.features)(subject.levels["train"]))
    predicted = read(judge)(subject.levels["validation"]).argmax(1).numpy()
    name = f"{judge.num_features} features of a small classifier of the training images, standardised on them"
    return Space(
        lambda levels: torch.from_numpy(scaler.transform(read(judge.features)(levels))),
        {
            "generation_feature_space": name,
            "judge_accuracy": float(np.mean(predicted == subject.labels["validation"])),
        },
        lambda levels: read(judge)(levels).softmax(1).amax(1),
    )


def _in_batches(network: Callable[[torch.Tensor], torch.Tensor], subject: Subject) -> Features:
    @torch.no_grad()
    def read(levels: torch.Tensor) -> torch.Tensor:
        batches = levels.split(subject.batch_size)
        return torch.cat([network(batch.to(subject.model.device)).double().cpu() for batch in batches])

    return read


class Judge(nn.Module):
    """A convolutional classifier for images of any size; `features` is the layer before the last."""

    num_features = 64

    def __init__(self, num_channels: int, image_size: int, num_classes: int):
        super().__init__()
        width, size = 32, image_size
        layers = [_convolution(num_channels, width)]
        while size > 4:  # half the side at each stage
            wider = min(2 * width, 128)
            layers.append(_convolution(width, wider, stride=2))
            width, size = wider, (size + 1) // 2
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, self.num_features), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(self.num_features, num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values (N, C, H, W) in [-1, 1] -> logits (N, num_classes)."""
        return self.classifier(self.features(pixel_values))


def _convolution(num_inputs: int, num_outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(num_outputs), nn.ReLU()
    )


def train_judge(levels: torch.Tensor, labels: np.ndarray, num_levels: int, device: torch.device) -> Judge:
    """
    A judge that has learned the classes of training images, in evaluation mode; always from the same seed.

    Args:
        levels: (N, C, H, W).
        labels: (N,) integers from 0.
    """
    targets = torch.from_numpy(labels).long()
    with fork_rng(device):
        torch.manual_seed(0)
        judge = Judge(levels.shape[1], levels.shape[-1], int(targets.max()) + 1).to(device)
        optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=NUM_STEPS)
        for _ in range(NUM_STEPS):
            batch = torch.randint(len(levels), (BATCH_SIZE,))
            logits = judge(levels_to_pixels(levels[batch].to(device), num_levels))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, targets[batch].to(device)).backward()
            optimizer.step()
            schedule.step()
    return judge.eval()
