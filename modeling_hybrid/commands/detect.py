"""`hybrid detect`: which images are of another kind than the normal ones?"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from .batches import Reader
from .checkpoints import has_detector, load, measure, nll_maps, resolve
from .options import CheckpointOptions, ComputeOptions, ImageOptions, MapsOption, require, say, verb
from .progress import Progress
from .results import Format, FormatOption, RowsOption, read_json, require_writable, rows_to, written_whole
from .sources import Sources
from .surprise import SurpriseMaps


# In the folder of a detector, beside its weights.
THRESHOLD_FILE = "threshold.json"
COLUMNS = ("id", "verdict", "score", "p_value")
# Of five images in a row, as files often come sorted: statistics, scale of the scores, threshold.
_ROLES = (0, 0, 0, 1, 2)

detect = typer.Typer(help="Fit a detector on normal images, and tell others from them.", no_args_is_help=True)


@dataclass
class Threshold:
    """
    Where "strange" begins, chosen on normal images that nothing else was fitted on.

    Args:
        false_alarm_rate: share of normal images that are at most to be called strange, as it was asked for.
        threshold: scores above it are strange.
        low, high: 95 % interval (Clopper and Pearson, 1934, Biometrika 26) of the share of normal images above it.
        scores: of those images, in ascending order.
    """

    false_alarm_rate: float
    threshold: float
    low: float
    high: float
    scores: list[float]

    @classmethod
    def choose(cls, scores: list[float], false_alarm_rate: float) -> "Threshold":
        """
        The lowest score that holds the rate on average over samples of normal images.

        Raises:
            ValueError: too few scores for such a rate.
        """
        scores, num = sorted(scores), len(scores)
        # Of num + 1 exchangeable scores, a new one is above the k-th smallest with chance (num + 1 - k) / (num + 1).
        k = math.ceil((num + 1) * (1 - false_alarm_rate) - 1e-9)
        if k > num:
            needed = math.ceil(1 / false_alarm_rate - 1e-9) - 1
            raise ValueError(
                f"A false-alarm rate of {false_alarm_rate} needs {needed} images for the threshold, there are {num}: "
                f"one in {len(_ROLES)} of the normal ones. Give more of them, or a higher rate."
            )
        above = sum(score > scores[k - 1] for score in scores)
        interval = require("scipy.stats").binomtest(above, num).proportion_ci(0.95, method="exact")
        return cls(false_alarm_rate, scores[k - 1], float(interval.low), float(interval.high), scores)

    def p_value(self, score: float) -> float:
        """Share of normal images, this one counted in, that score at least as high."""
        return (1 + sum(one >= score for one in self.scores)) / (1 + len(self.scores))

    @classmethod
    def read(cls, folder: str, revision: str | None) -> "Threshold":
        """
        Raises:
            ValueError: a checkpoint without one, or with a damaged one.
        """
        from transformers.utils import cached_file

        path = cached_file(folder, THRESHOLD_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is None:
            raise ValueError(f"{folder} has no {THRESHOLD_FILE}; make a detector with one by hybrid detect fit.")
        names = [field.name for field in fields(cls)]
        found = read_json(Path(path), *names)
        return cls(**{name: found[name] for name in names})


@detect.command()
@verb
def fit(
    checkpoint: CheckpointOptions,
    images: ImageOptions,
    compute: ComputeOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the detector, a checkpoint of its own.")],
    false_alarm_rate: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Share of normal images that may be called strange.")
    ] = 0.05,
):
    """
    Fit a detector on normal images; others are not needed, and no weight changes. Three in five give the statistics,
    one in five the scale of the scores and one in five the threshold, which is kept in the folder with its interval.
    Best given are images that the checkpoint was not trained on.
    """
    sources = Sources(images)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; give a new folder as --output.")
    require_writable(output / THRESHOLD_FILE)
    model, processor = load(checkpoint, compute)
    if not hasattr(model, "strangeness"):
        raise ValueError(f"{checkpoint.checkpoint} loads as {type(model).__name__}, which is no detector.")
    import torch

    reader, regions, nll = Reader(processor, images, compute.batch_size), [], []
    with Progress(sources.count()) as progress:
        for batch in reader.batches(sources, progress):
            found = measure(model, batch.pixel_values)
            regions.append(found.regions)
            nll.append(found.nll)
    reader.unreadable.check(at_end=True)
    regions = torch.cat(regions)
    nll = torch.cat(nll) if nll[0] is not None else None
    roles = torch.tensor(_ROLES).repeat(len(regions) // len(_ROLES) + 1)[: len(regions)]

    def of(role: int):
        return regions[roles == role], None if nll is None else nll[roles == role]

    model.to("cpu").strangeness.fit(of(0)[0], *of(1))
    with torch.no_grad():
        scores = model.strangeness(*of(2))["combined"].tolist()
    threshold = Threshold.choose(scores, false_alarm_rate)
    for part in (model, processor):
        part.save_pretrained(output)
    with written_whole(output / THRESHOLD_FILE) as partial:
        partial.write_text(json.dumps(asdict(threshold), indent=1) + "\n")
    say(
        f"{output}: scores above {threshold.threshold:.4f} are strange; so are {false_alarm_rate:.1%} of normal images "
        f"or fewer, between {threshold.low:.1%} and {threshold.high:.1%} (95 % interval, of {len(scores)} images)."
    )


@detect.command()
@verb
def score(
    checkpoint: CheckpointOptions,
    images: ImageOptions,
    compute: ComputeOptions,
    output: RowsOption = None,
    format: FormatOption = Format.csv,
    maps: MapsOption = None,
):
    """
    Tell images of another kind by a fitted detector: verdict (normal or strange), score, and p_value, the share of
    normal images that score as high. Ends with 0 whatever is found.
    """
    sources = Sources(images)
    model, processor = load(checkpoint, compute)
    if not has_detector(model):
        raise ValueError(f"{checkpoint.checkpoint} is no fitted detector; make one by hybrid detect fit.")
    threshold = Threshold.read(resolve(checkpoint), checkpoint.revision)
    reader, pictures = Reader(processor, images, compute.batch_size), maps and SurpriseMaps(maps, processor)
    with Progress(sources.count()) as progress, rows_to(output, format, COLUMNS) as rows:
        for batch in reader.batches(sources, progress):
            for item, value in zip(batch.items, measure(model, batch.pixel_values).strangeness.tolist(), strict=True):
                verdict = "strange" if value > threshold.threshold else "normal"
                rows.write(item.name, verdict, value, threshold.p_value(value))
            if pictures:
                pictures.save(batch, nll_maps(model, batch.pixel_values))
        reader.unreadable.check(at_end=True)
