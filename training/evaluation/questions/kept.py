"""
What do features keep of their image? Bits that they save a decoder that learns to read them, equal for every encoder.

Shape letters: N images, P width of the pooled feature.
"""

import copy
import math

import numpy as np
import torch

from modeling_hybrid import HybridForImageGeneration
from modeling_hybrid.patch_codes import levels_to_codes

from ...hardware import fork_rng
from ..subject import Findings, Subject


BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 128, 3e-3, 0.05
# Share of the images that the decoder learns from with their features; from the others it learns p(image).
GIVEN_SHARE = 0.5


def evaluate(subject: Subject) -> Findings:
    """
    Bits of each test image by the features of any encoder, frozen, whether it has a likelihood or none: an encoder and
    decoder of the same sizes learn p(image | features) and p(image) from scratch, by
    `evaluation.num_decoder_steps` steps on the training images. The starting weights and the batches are those of the
    seed, whatever the encoder; so encoders may be compared by -log2 p(image | features) too, in which no estimate of
    the entropy of the images enters. Nothing where the number of steps is 0.
    """
    num_steps = subject.config.evaluation.num_decoder_steps
    if num_steps == 0:
        return Findings()
    decoder = train_decoder(subject, num_steps)
    levels, features = subject.levels["test"], torch.from_numpy(subject.features["test"])
    without, given, of_another = (
        nats_of(decoder, levels, rows, subject.batch_size) / math.log(2)
        for rows in (None, features, features.roll(1, dims=0))
    )
    results = {
        "kept_bits": without - given,
        "kept_bits_of_another": without - of_another,
        "bits_without_features": without,
        "bits_given_features": given,
    }
    return Findings({name: float(rows.mean()) for name, rows in results.items()}, {"kept_bits": results["kept_bits"]})


def train_decoder(subject: Subject, num_steps: int) -> HybridForImageGeneration:
    """A model of the sizes of the subject's that has learnt to be told its training features, in evaluation mode."""
    config = copy.deepcopy(subject.model.config)
    config.generative_weight, config.encoder_attention, config.decoder_condition = 1.0, "causal", "features"
    levels, features = subject.levels["train"], torch.from_numpy(subject.features["train"])
    device = subject.model.device
    with fork_rng(device):
        torch.manual_seed(subject.config.seed)
        decoder = HybridForImageGeneration(config).to(device).train()
        optimizer = torch.optim.AdamW(decoder.parameters(), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
        for _ in range(num_steps):
            batch = torch.randint(len(levels), (BATCH_SIZE,))
            is_given = torch.rand(BATCH_SIZE) < GIVEN_SHARE
            told = [row if given else None for row, given in zip(features[batch], is_given, strict=True)]
            loss = decoder(codes=levels_to_codes(levels[batch].to(device), config), features=told).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return decoder.eval()


@torch.no_grad()
def nats_of(
    decoder: HybridForImageGeneration, levels: torch.Tensor, features: torch.Tensor | None, batch_size: int
) -> np.ndarray:
    """-log p of levels (N, C, H, W), given features (N, P) or nothing, (N,)."""
    rows = [None] * len(levels) if features is None else features.split(batch_size)
    nats = [
        -decoder.log_likelihood(codes=levels_to_codes(images.to(decoder.device), decoder.config), features=told)
        for images, told in zip(levels.split(batch_size), rows, strict=False)
    ]
    return torch.cat(nats).float().cpu().numpy()
