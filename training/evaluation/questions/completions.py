"""
What three ways of decoding make of the lower half of an image: sampling, greedy decoding and contrastive search (Su et
al. 2022, arXiv 2202.06417).
"""

import torch
from torch import nn

from modeling_hybrid.levels import levels_to_pixels
from modeling_hybrid.patch_codes import codes_to_levels, levels_to_codes

from ..judge import train_judge
from ..subject import Findings, Subject


DECODED = {
    "sampled": {"temperature": 0.8},
    "greedy": {"do_sample": False},
    "searched": {"penalty_alpha": 0.6, "top_k": 4},
}


@torch.no_grad()
def evaluate(subject: Subject) -> Findings:
    """
    Of completed test images, by way of decoding (`sampled_`, `greedy_`, `searched_`): how many the judge takes for what
    they were (`completion_accuracy`), and their nats given the upper half (`completion_nats`). Beside them the same of
    the true images (`true_`), and the mean cosine of the decoder's states after two patches of an image
    (`decoder_state_cosine`), which contrastive search presumes to be far from 1.

    Nothing without labels or a likelihood, and where a patch has several codes, which contrastive search does not take.
    """
    model = subject.model
    config = model.config
    if subject.labels is None or not subject.has_likelihood or config.num_codes > 1:
        return Findings()
    num_images = subject.affordable(len(subject.levels["test"]))
    levels, labels = subject.levels["test"][:num_images], subject.labels["test"][:num_images]
    with torch.enable_grad():
        judge = train_judge(subject.levels["train"], subject.labels["train"], config.num_levels, model.device)
    num_rows = config.image_size // 2
    generator = torch.Generator(model.device).manual_seed(subject.config.seed)
    completed, cosines = {name: [] for name in ("true", *DECODED)}, []
    for batch in levels.to(model.device).split(subject.batch_size):
        codes, pixel_values = levels_to_codes(batch, config), levels_to_pixels(batch, config.num_levels)
        cosines.append(mean_cosine(model.decoder_states(codes, torch.zeros_like(codes[:, 0, 0]))[:, 1:]))
        completed["true"].append(codes)
        for name, arguments in DECODED.items():
            completed[name].append(model.generate(pixel_values, num_rows, generator=generator, **arguments))
    results = {"decoder_state_cosine": float(torch.cat(cosines).mean())}
    for name, parts in completed.items():
        codes = torch.cat(parts)
        nats = model.nll_map(codes=codes)[:, num_rows * config.image_size :].sum(dim=1)
        taken_for = judge(levels_to_pixels(codes_to_levels(codes, config), config.num_levels)).argmax(dim=1)
        results[f"{name}_completion_nats"] = float(nats.mean())
        results[f"{name}_completion_accuracy"] = float((taken_for.cpu().numpy() == labels).mean())
    return Findings(results, num_images={"completed images": num_images})


def mean_cosine(states: torch.Tensor) -> torch.Tensor:
    """Of any two states of an image: (B, S, D) -> (B,)."""
    rows, num = nn.functional.normalize(states.float(), dim=-1), states.shape[1]
    return (rows.sum(dim=1).square().sum(dim=-1) - num) / (num * (num - 1))
