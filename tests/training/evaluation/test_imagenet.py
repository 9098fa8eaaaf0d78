"""Features of a network of ImageNet, as a control."""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from training_fixtures import load_splits_once, small_config

from training.evaluation import imagenet
from training.evaluation.requirements import require_enough


def test_features_know_photographs_apart_whatever_their_size_and_channels(one_thread):
    china, flower = (torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images)
    crops = torch.stack([china[:, :200, :200], china[:, 100:300, 100:300], flower[:, 100:300, 200:400]])
    features = imagenet.imagenet_features(crops, 256)
    assert features.shape == (3, 1280) and np.isfinite(features).all()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2]
    # Grey images of few levels are enlarged and shown in three channels.
    grey = imagenet.imagenet_features(torch.tensor([[[[0, 16], [16, 0]]]], dtype=torch.uint8), 17)
    assert grey.shape == (1, 1280)


def test_what_is_missing_or_changed_is_told_at_the_start(tmp_path, monkeypatch):
    config = small_config(tmp_path, evaluation__imagenet_control="true")
    splits = load_splits_once(config.data, config.model_config())
    require_enough(splits, config.evaluation)
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_SHA256", "0")
        with pytest.raises(ValueError, match=r"has the SHA-256 .* expected 0; install the package anew"):
            require_enough(splits, config.evaluation)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"imagenet_control=true needs .*pip install -e"):
        require_enough(splits, config.evaluation)
