"""
Speed and memory of the hybrid model beside transformers' ImageGPT and ViT.

    python -m training.benchmarks.peers [--threads 2] [--repeats 5] [--only NAME] [--output peers.json] [--profile]

All models have 8 layers, hidden size 256 and 8 heads; those of the hybrid are 6 of encoder and 2 of decoder. They run
on the CPU in fp32, in turn within one process (A B C A B C ...), after a warm-up; values are medians. Images are
uniform noise from a fixed seed, which costs what real ones do. Augmentation and image loading are not part of a step.

    pixel_step  A training step (forward, backward, AdamW), patch size 1 for all, on 16x16 grey images of 256 levels.
                Hybrid: both losses on two views. ImageGPT: one pass over the clean view. ViT: NT-Xent on both views.
                The value is hybrid / (ImageGPT + ViT).
    patch_step  The same on 32x32 RGB. Hybrid and ViT: 4x4 patches. ImageGPT: its usual 1024 colours out of a palette
                of 512. The value is source images per second, hybrid / ImageGPT.
    features    Images per second of `HybridModel`, with its 6 encoder layers and with as many as the ViT has, / ViT.
    generate    Images per second of whole sampled images, 32x32 RGB, hybrid / ImageGPT, both with their caches; once
                more with the logistic mixture (`mixture`) instead of the softmax.
    both_losses A training step of both losses, a quarter of the clean images scored by the logistic mixture, over one
                of the contrastive loss alone, on the shapes of three recipes; `training.benchmarks.losses` has more.
    memory      Peak memory of the steps above, each in a fresh process: the most that two steps add to what the
                process holds once models, optimizer and images exist. It includes gradients and AdamW's moments, not
                the weights.

`--output` is one flat JSON object: the setting (`cpu`, `threads`, `repeats`, `torch`, `transformers`) and one number
per value. Names end in the unit: `_s` seconds, `_images_per_s`, `_mib` 2^20 bytes; ratios and shares have none.
`TARGETS` says what the project aims at.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling, ViTConfig, ViTModel

from modeling_hybrid import HybridConfig, HybridForImageGeneration, HybridForPreTraining, HybridModel
from modeling_hybrid.patch_codes import pixels_to_codes
from modeling_hybrid.projector import Projector

from ..command import command, parser_of
from . import losses
from .measure import (
    Targets,
    add_options,
    added_at_peak,
    begin,
    in_fresh_process,
    interleaved,
    print_profile,
    seconds_of_parts,
    table,
    write,
)


SHAPES_OF_BOTH_LOSSES = ("digits", "glyphs", "cifar10")
TARGETS: Targets = {f"both_losses_{shape}_ratio": (0.0, 1.25) for shape in SHAPES_OF_BOTH_LOSSES} | {
    "pixel_step_ratio": (0.0, 0.75),
    "patch_step_speedup": (8.0, torch.inf),
    "features_batch_1_ratio": (1.0, torch.inf),
    "features_batch_64_ratio": (1.0, torch.inf),
    "features_batch_1_as_deep_ratio": (1.1, torch.inf),
    "features_batch_64_as_deep_ratio": (1.1, torch.inf),
    "generate_speedup": (10.0, torch.inf),
    "generate_mixture_speedup": (40.0, torch.inf),
}


@dataclass(frozen=True)
class Sizes:
    """What the models of a comparison share. `palette` is None where ImageGPT reads the subpixels themselves."""

    image_size: int
    num_channels: int
    patch_size: int
    batch_size: int
    palette: int | None = None
    num_levels: int = 256
    hidden_size: int = 256
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 2

    @property
    def num_layers(self) -> int:
        return self.num_encoder_layers + self.num_decoder_layers

    def hybrid_config(self, **overrides) -> HybridConfig:
        arguments = {
            "image_size": self.image_size,
            "num_channels": self.num_channels,
            "patch_size": self.patch_size,
            "num_levels": self.num_levels,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_heads,
            "num_encoder_layers": self.num_encoder_layers,
            "num_decoder_layers": self.num_decoder_layers,
        }
        return HybridConfig(**arguments | overrides)

    def imagegpt(self) -> ImageGPTForCausalImageModeling:
        # No dropout, as in the other models.
        return ImageGPTForCausalImageModeling(
            ImageGPTConfig(
                vocab_size=(self.palette or self.num_levels) + 1,  # one more: the start token
                n_positions=self.image_size**2,
                n_embd=self.hidden_size,
                n_layer=self.num_layers,
                n_head=self.num_heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )

    def vit(self) -> ViTModel:
        config = ViTConfig(
            image_size=self.image_size,
            num_channels=self.num_channels,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=4 * self.hidden_size,
        )
        return ViTModel(config, add_pooling_layer=False)

    def images(self) -> torch.Tensor:
        """Two views of uniform noise in [-1, 1]: (2, B, C, H, W)."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.batch_size, self.num_channels, self.image_size, self.image_size)
        return torch.rand(shape, generator=generator) * 2 - 1


PIXEL_SIZES = Sizes(image_size=16, num_channels=1, patch_size=1, batch_size=8)
PATCH_SIZES = Sizes(image_size=32, num_channels=3, patch_size=4, batch_size=8, palette=512)
GENERATE_SIZES = replace(PATCH_SIZES, batch_size=16)
MIXTURE = {"code_distribution": "logistic_mixture", "depth_hidden_size": 32}


def nt_xent(projections: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """NT-Xent (Chen et al. 2020, arXiv 2002.05709, eq. 1) of two views: rows of length one (2, B, D) -> ()."""
    rows = projections.flatten(0, 1)
    itself = torch.eye(len(rows), dtype=torch.bool)
    logits = (rows @ rows.T / temperature).masked_fill(itself, -torch.inf)
    return nn.functional.cross_entropy(logits, torch.arange(len(rows)).roll(len(rows) // 2))


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One call: gradients of `loss()`, then AdamW on `model`."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def hybrid_step(sizes: Sizes) -> Callable[[], None]:
    model, views = HybridForPreTraining(sizes.hybrid_config()), sizes.images()
    view_kinds = torch.tensor([0, 1])  # clean, augmented
    return training_step(model, lambda: model(views, view_kinds).loss)


def imagegpt_step(sizes: Sizes) -> Callable[[], None]:
    model = sizes.imagegpt()
    if sizes.palette is None:
        codes = pixels_to_codes(sizes.images()[0], sizes.hybrid_config()).flatten(1)
    else:
        # Which colours they are makes no difference to the time.
        codes = torch.randint(sizes.palette, (sizes.batch_size, sizes.image_size**2))
    start = torch.full((sizes.batch_size, 1), model.config.vocab_size - 1)
    input_ids = torch.cat([start, codes[:, :-1]], dim=1)

    def loss():
        # Its own `labels` would leave the last code unscored, and copy the logits. A cache is of no use in training.
        logits = model(input_ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())

    return training_step(model, loss)


def vit_step(sizes: Sizes) -> Callable[[], None]:
    model = nn.ModuleDict({"vit": sizes.vit(), "projector": Projector(sizes.hybrid_config(), sizes.hidden_size)})
    views = sizes.images()

    def loss():
        features = model["vit"](views.flatten(0, 1)).last_hidden_state[:, 0]
        return nt_xent(model["projector"](features).unflatten(0, views.shape[:2]))

    return training_step(model, loss)


STEPS = {"hybrid": hybrid_step, "imagegpt": imagegpt_step, "vit": vit_step}


def compare_pixel_step(repeats: int, sizes: Sizes = PIXEL_SIZES) -> dict[str, float]:
    medians = interleaved({name: build(sizes) for name, build in STEPS.items()}, repeats)
    values = {f"pixel_step_{name}_s": median for name, median in medians.items()}
    values["pixel_step_ratio"] = medians["hybrid"] / (medians["imagegpt"] + medians["vit"])
    return values


def compare_patch_step(repeats: int, sizes: Sizes = PATCH_SIZES) -> dict[str, float]:
    medians = interleaved({name: build(sizes) for name, build in STEPS.items()}, repeats)
    values = {f"patch_step_{name}_images_per_s": sizes.batch_size / median for name, median in medians.items()}
    values["patch_step_speedup"] = medians["imagegpt"] / medians["hybrid"]
    values["patch_step_over_vit_ratio"] = medians["vit"] / medians["hybrid"]
    return values


@torch.no_grad()
def compare_features(
    repeats: int, sizes: Sizes = PATCH_SIZES, batch_sizes: tuple[int, ...] = (1, 64)
) -> dict[str, float]:
    encoders = {
        "hybrid": HybridModel(sizes.hybrid_config()).eval(),
        "hybrid_as_deep": HybridModel(sizes.hybrid_config(num_encoder_layers=sizes.num_layers)).eval(),
        "vit": sizes.vit().eval(),
    }
    values = {}
    for batch_size in batch_sizes:
        images = replace(sizes, batch_size=batch_size).images()[0]
        runs = {name: partial(encoder, images) for name, encoder in encoders.items()}
        # A single image takes milliseconds, so a turn is many of them.
        medians = interleaved(runs, repeats, calls=1 + 64 // batch_size)
        for name, median in medians.items():
            values[f"features_batch_{batch_size}_{name}_images_per_s"] = batch_size / median
        values[f"features_batch_{batch_size}_ratio"] = medians["vit"] / medians["hybrid"]
        values[f"features_batch_{batch_size}_as_deep_ratio"] = medians["vit"] / medians["hybrid_as_deep"]
    return values


def compare_generate(repeats: int, sizes: Sizes = GENERATE_SIZES) -> dict[str, float]:
    repeats = min(repeats, 2)  # ImageGPT takes a minute for its 1024 colours
    models = {
        "hybrid": HybridForImageGeneration(sizes.hybrid_config()).eval(),
        "mixture": HybridForImageGeneration(sizes.hybrid_config(**MIXTURE)).eval(),
    }
    imagegpt = sizes.imagegpt().eval()
    start = torch.full((sizes.batch_size, 1), imagegpt.config.vocab_size - 1)
    sample_patch, in_depth_head = models["hybrid"].depth_head.sample, []

    def timed_sample_patch(*arguments):
        began = time.perf_counter()
        codes = sample_patch(*arguments)
        in_depth_head.append(time.perf_counter() - began)
        return codes

    models["hybrid"].depth_head.sample = timed_sample_patch
    runs = {name: partial(model.generate, batch_size=sizes.batch_size) for name, model in models.items()}
    # All colours, as is the hybrid's default.
    runs["imagegpt"] = partial(imagegpt.generate, start, max_length=sizes.image_size**2 + 1, do_sample=True, top_k=0)
    medians, num_patches = interleaved(runs, repeats), models["hybrid"].config.num_patches
    values = {f"generate_{name}_images_per_s": sizes.batch_size / median for name, median in medians.items()}
    return values | {
        "generate_repeats": repeats,
        "generate_speedup": medians["imagegpt"] / medians["hybrid"],
        "generate_mixture_speedup": medians["imagegpt"] / medians["mixture"],
        "generate_depth_head_share": statistics.median(in_depth_head) * num_patches / medians["hybrid"],
    }


def compare_both_losses(repeats: int) -> dict[str, float]:
    values = {}
    for shape in SHAPES_OF_BOTH_LOSSES:
        steps = {"both": losses.step(shape, "mixture_quarter"), "contrastive": losses.step(shape, losses.CONTRASTIVE)}
        medians = interleaved(steps, repeats)
        values |= {f"both_losses_{shape}_{name}_s": median for name, median in medians.items()}
        values[f"both_losses_{shape}_ratio"] = medians["both"] / medians["contrastive"]
    return values


def memory_of_step(name: str, sizes: Sizes, threads: int) -> float:
    """MiB that two training steps add at their peak: AdamW's moments appear at the end of the first."""
    torch.set_num_threads(threads)
    return added_at_peak(STEPS[name](sizes), calls=2)


def compare_memory(repeats: int) -> dict[str, float]:
    values = {}
    for comparison, sizes in (("pixel_step", PIXEL_SIZES), ("patch_step", PATCH_SIZES)):
        peaks = {name: in_fresh_process(memory_of_step, name, sizes, torch.get_num_threads()) for name in STEPS}
        for name, peak in peaks.items():
            values[f"memory_{comparison}_{name}_mib"] = peak
        for peer in ("imagegpt", "vit"):
            values[f"memory_{comparison}_over_{peer}_ratio"] = peaks["hybrid"] / peaks[peer]
    return values


COMPARISONS = {
    "pixel_step": compare_pixel_step,
    "patch_step": compare_patch_step,
    "features": compare_features,
    "generate": compare_generate,
    "both_losses": compare_both_losses,
    "memory": compare_memory,
}


def profile(sizes: Sizes = PATCH_SIZES) -> None:
    """Where the time of the hybrid goes: a training step, features of one image, sampling."""
    model, views = HybridForPreTraining(sizes.hybrid_config()), sizes.images()
    step = training_step(model, lambda: model(views, torch.tensor([0, 1])).loss)
    print_profile("training step", step)
    parts = {
        "encoder": model.encoder.stack,
        "decoder": model.decoder,
        "depth head": model.depth_head,
        "projector": model.projector,
    }
    spent = seconds_of_parts(parts, step)
    for name, duration in spent.items():
        print(f"{name:<40} {duration * 1e3:10.2f} ms {duration / sum(spent.values()):6.1%}")

    encoder = HybridModel(sizes.hybrid_config()).eval()
    print_profile("features, batch 1", torch.no_grad()(partial(encoder, views[0, :1])))
    generator = HybridForImageGeneration(sizes.hybrid_config()).eval()
    print_profile("generate", lambda: generator.generate(batch_size=2 * sizes.batch_size))


@command
def main(arguments: list[str]) -> None:
    parser = parser_of("training.benchmarks.peers", __doc__)
    add_options(parser, output="peers.json", repeats=5)
    parser.add_argument("--only", choices=COMPARISONS)
    parser.add_argument("--profile", action="store_true", help="print where the hybrid's time goes, and stop")
    options = parser.parse_args(arguments)
    settings, values = begin(options), {}
    if options.profile:
        return profile()
    for name in [options.only] if options.only else COMPARISONS:
        print(name, flush=True)
        values |= COMPARISONS[name](options.repeats)
    print(table(values, TARGETS))
    write(options.output, settings, values)


if __name__ == "__main__":
    sys.exit(main())
