"""What a model with latents says of images: p(image | latent), and an estimate of p(image). Neither is p(image)."""

import math

import torch

from modeling_hybrid.patch_codes import levels_to_codes

from ..subject import Findings, Subject


# Latents that an estimate of an image is made from; each costs a pass.
NUM_SAMPLES = 16


@torch.no_grad()
def evaluate(subject: Subject) -> Findings:
    """
    Bits per dimension of test images given the mean of their latent, and those of the importance-sampled estimate of
    p(image) (`estimated_log_likelihood`), too many in expectation; nothing without latents.
    """
    model = subject.model
    if not model.config.has_latent:
        return Findings()
    levels = subject.levels["test"]
    num_estimated = min(subject.affordable(subject.config.evaluation.num_out_of_distribution), len(levels))
    per_dim = -1 / (math.log(2) * model.config.num_dims)
    given, estimated = [], []
    for batch in levels[:num_estimated].split(subject.batch_size):
        codes = levels_to_codes(batch.to(model.device), model.config)
        given.append(model.log_likelihood(codes=codes, features=model.posterior(codes=codes).mean))
        estimated.append(model.estimated_log_likelihood(codes=codes, num_samples=NUM_SAMPLES))
    bits = {
        "conditional_bits_per_dim": torch.cat(given) * per_dim,
        "estimated_bits_per_dim": torch.cat(estimated) * per_dim,
    }
    bits = {name: rows.float().cpu().numpy() for name, rows in bits.items()}
    return Findings({name: float(rows.mean()) for name, rows in bits.items()}, bits, {"estimated": num_estimated})
