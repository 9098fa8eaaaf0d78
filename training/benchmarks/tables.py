"""Stored measurements as Markdown tables, each with its aims and its setting."""

import re
from typing import Any

from ..reports.reported import table as markdown
from . import losses, objectives, peers, scoring
from .measure import Targets


# What a benchmark wrote: its setting and its values.
Stored = dict[str, Any]


def _setting(stored: Stored) -> str:
    return (
        f"On {stored['cpu']}, {stored['threads']} thread(s), fp32, torch {stored['torch']}, transformers "
        f"{stored['transformers']}; medians of {stored['repeats']} repeats"
    )


def _aim(targets: Targets, stored: Stored, key: str) -> str:
    """What the project aims at, and whether this is met."""
    if key not in targets:
        return ""
    low, high = targets[key]
    bound = f"at least {low:g}" if high == float("inf") else f"at most {high:g}"
    return f"{bound}: {'met' if low <= stored[key] <= high else '**missed**'}"


def _with_unit(value: float, unit: str) -> str:
    """A value of a benchmark, whose name ends in that unit."""
    if unit == "images_per_s":
        return f"{value:.3g} images/s"
    if unit == "mib":
        return f"{value:,.0f} MiB"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


_PEERS = {"imagegpt": "ImageGPT", "vit": "ViT", "contrastive": "contrastive loss alone"}
# A line of the table beside peers: its title, then what the names of the values are made of.
_PIXELS, _PATCHES = "16x16 grey, patch size 1", "32x32 RGB, 4x4 patches"
_BESIDE_PEERS = (
    (f"training step, {_PIXELS}", "pixel_step", "hybrid", "imagegpt vit", "s", "ratio"),
    (f"training step, {_PATCHES}", "patch_step", "hybrid", "imagegpt", "images_per_s", "speedup"),
    (f"training step, {_PATCHES}", "patch_step", "hybrid", "vit", "images_per_s", "over_vit_ratio"),
    ("features, batch 1, 6 layers", "features_batch_1", "hybrid", "vit", "images_per_s", "ratio"),
    ("features, batch 64, 6 layers", "features_batch_64", "hybrid", "vit", "images_per_s", "ratio"),
    ("features, batch 1, 8 layers", "features_batch_1", "hybrid_as_deep", "vit", "images_per_s", "as_deep_ratio"),
    ("features, batch 64, 8 layers", "features_batch_64", "hybrid_as_deep", "vit", "images_per_s", "as_deep_ratio"),
    ("`generate`, 16 images of 32x32 RGB", "generate", "hybrid", "imagegpt", "images_per_s", "speedup"),
    ("the same, logistic mixture", "generate", "mixture", "imagegpt", "images_per_s", "mixture_speedup"),
    *(
        (f"step of both losses, {shape}", f"both_losses_{shape}", "both", "contrastive", "s", "ratio")
        for shape in peers.SHAPES_OF_BOTH_LOSSES
    ),
    (f"memory of a step, {_PIXELS}", "memory_pixel_step", "hybrid", "imagegpt", "mib", "over_imagegpt_ratio"),
    (f"memory of a step, {_PIXELS}", "memory_pixel_step", "hybrid", "vit", "mib", "over_vit_ratio"),
    (f"memory of a step, {_PATCHES}", "memory_patch_step", "hybrid", "imagegpt", "mib", "over_imagegpt_ratio"),
    (f"memory of a step, {_PATCHES}", "memory_patch_step", "hybrid", "vit", "mib", "over_vit_ratio"),
)


def beside_peers(stored: Stored) -> str:
    """The values of `training.benchmarks.peers`."""
    rows = []
    for title, measured, ours, beside, unit, ratio in _BESIDE_PEERS:
        if f"{measured}_{ratio}" not in stored:  # measured by `--only`, or before the row was there
            continue
        value, *others = (_with_unit(stored[f"{measured}_{name}_{unit}"], unit) for name in [ours, *beside.split()])
        named = [f"{_PEERS[peer]} {text}" for peer, text in zip(beside.split(), others, strict=True)]
        key = f"{measured}_{ratio}"
        rows.append([title, value, " + ".join(named), f"{stored[key]:.3g}", _aim(peers.TARGETS, stored, key)])
    return (
        f"{markdown(['', 'this model', 'peer', 'ratio', 'aim'], rows)}\n\n{_setting(stored)} "
        f"({stored['generate_repeats']} of `generate`). The depth head takes {stored['generate_depth_head_share']:.0%} "
        "of `generate`."
    )


def of_objectives(stored: Stored) -> str:
    """The values of `training.benchmarks.objectives`."""
    sizes = sorted({int(found[1]) for key in stored if (found := re.fullmatch(r"\w+_(\d+)_ours_ms", key))})
    names = [name for name in objectives.CASES if f"{name}_{sizes[-1]}_ours_ms" in stored]
    hows = [how for how in ("ours", "plain", "lightly") if any(f"_{how}_ms" in key for key in stored)]
    large, tiled = objectives.LARGE_BATCH, objectives.TILED
    columns = [(f"{how}, ms, B = {size:,}", f"{size}_{how}_ms", ".3g") for size in sizes for how in hows]
    columns += [(f"ratio to plain, B = {sizes[-1]:,}", f"{sizes[-1]}_ratio", ".2f")]
    columns += [(f"{how}, MiB, B = {sizes[-1]:,}", f"{sizes[-1]}_{how}_mib", ",.0f") for how in hows]
    columns += [(f"ours, MiB, B = {large:,}", f"memory_{large}_mib", ",.0f")]

    def cell(name: str, key: str, digits: str) -> str:
        value = stored.get(f"{name}_{key}")
        if value is None:
            return ""
        text = f"{value:,.0f}" if digits == ".3g" and value >= 100 else f"{value:{digits}}"
        return f"**{text}**" if "missed" in _aim(objectives.TARGETS, stored, f"{name}_{key}") else text

    rows = [[name, *(cell(name, key, digits) for _, key, digits in columns)] for name in names]
    ratio, memory = (objectives.TARGETS[f"{tiled[0]}_{key}"][1] for key in ("4096_ratio", f"memory_{large}_mib"))
    return (
        f"{markdown(['', *(title for title, _, _ in columns)], rows, mark='---:')}\n\n{_setting(stored)}. Aims for "
        f"{', '.join(tiled)}: a ratio of at most {ratio:g} at B = 4,096, and at most {memory:g} MiB at B = {large:,}; "
        "what misses them is bold."
    )


def of_chunks(stored: Stored) -> str:
    """The values of `training.benchmarks.gradient_cache`."""
    rows = [
        [title, *(_with_unit(stored[f"{way}_{unit}"], unit) for way in ("whole", "chunks")), f"{stored[ratio]:.2f}"]
        for title, unit, ratio in (("time", "s", "time_ratio"), ("peak memory", "mib", "memory_ratio"))
    ]
    head = [f"batch of {stored['batch_size']}", "in one piece", f"in chunks of {stored['chunk_size']}", "ratio"]
    return f"{markdown(head, rows)}\n\n{_setting(stored)}."


def of_scoring(stored: Stored) -> str:
    """The values of `training.benchmarks.scoring`."""
    rows = [
        [head, _with_unit(stored[f"{head}_mib"], "mib"), _aim(scoring.TARGETS, stored, f"{head}_mib")]
        for head in scoring.HEADS
    ]
    head = [f"{stored['num_images']:,} images", "peak memory", "aim"]
    setting, _, _ = _setting(stored).rpartition(";")  # memory is measured once
    return f"{markdown(head, rows)}\n\n{setting}."


_VARIANTS = {
    "softmax": "softmax, every image scored",
    "softmax_quarter": "softmax, a quarter of the clean images",
    "mixture": "logistic mixture, every image scored",
    "mixture_quarter": "logistic mixture, a quarter of the clean images",
}


def of_losses(stored: Stored) -> str:
    """The values of `training.benchmarks.losses`: ratios to the contrastive step, and the share of products."""
    shapes = [shape for shape in losses.SHAPES if f"{shape}_contrastive_s" in stored]

    def cell(shape: str, variant: str, value: str = "ratio") -> str:
        key = f"{shape}_{variant}_{value}"
        aim = _aim(losses.TARGETS, stored, key)
        return f"{stored[key]:.2f}" + (f" ({aim})" if aim else "")

    rows = [["contrastive only", *(_with_unit(stored[f"{shape}_contrastive_s"], "s") for shape in shapes)]]
    rows += [[title, *(cell(shape, variant) for shape in shapes)] for variant, title in _VARIANTS.items()]
    rows.append(["of the last: matrix products alone", *(cell(shape, "mixture_quarter", "share") for shape in shapes)])
    return f"{markdown(['a step of', *shapes], rows)}\n\n{_setting(stored)}."


def of_processes(*stored: Stored) -> str:
    """The values of `training.benchmarks.processes`, a row for each number of processes."""
    rows = []
    for one in stored:
        ranks = range(one["processes"])
        cells = [", ".join(f"{one[f'{name}_{rank}_mib']:,.0f}" for rank in ranks) for name in ("ddp", "fsdp")]
        rows.append([str(len(ranks)), f"{one['weights_mib']:,.0f}", *cells, f"{one['ratio']:.2f}"])
    head = ["processes", "weights, MiB", "DDP, MiB by rank", "FSDP2, MiB by rank", "ratio"]
    return f"{markdown(head, rows)}\n\n{_setting(stored[0])}."


def of_streams(*stored: Stored) -> str:
    """The values of `training.benchmarks.streams`, a row for each file."""
    rows = [
        [
            f"{one['rows']:,}" + ("" if one["converts"] else ", not converted"),
            f"{one['rows_per_s']:,.0f}",
            f"{one['early_mib']:,.0f} MiB",
            f"{one['late_mib']:,.0f} MiB",
            _with_unit(one["resume_s"], "s"),
        ]
        for one in stored
    ]
    head = ["rows", "rows/s", "memory after a tenth", "memory at the end", "to go on from the end"]
    return f"{markdown(head, rows)}\n\n{_setting(stored[0])}."
