"""`hybrid score`: how likely images are, and where they surprise."""

from .batches import Reader
from .checkpoints import load, nll_maps
from .options import CheckpointOptions, ComputeOptions, ImageOptions, MapsOption, verb
from .progress import Progress
from .results import Format, FormatOption, RowsOption, rows_to
from .sources import Sources
from .surprise import SurpriseMaps


COLUMNS = ("id", "log_likelihood", "bits_per_dim")


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
    Score images: log_likelihood in nats and bits_per_dim of each, exact; lower bits are more likely. Compare them among
    images scored by one checkpoint only.
    """
    sources = Sources(images)
    model, processor = load(checkpoint, compute)
    model.require_likelihood()
    from modeling_hybrid.likelihood import bits_per_dim

    reader, pictures = Reader(processor, images, compute.batch_size), maps and SurpriseMaps(maps, processor)
    with Progress(sources.count()) as progress, rows_to(output, format, COLUMNS) as rows:
        for batch in reader.batches(sources, progress):
            surprises = nll_maps(model, batch.pixel_values)
            nll = surprises.sum(dim=1)
            bits = bits_per_dim(nll, model.config)
            for item, nats, value in zip(batch.items, nll.tolist(), bits.tolist(), strict=True):
                rows.write(item.name, -nats, value)
            if pictures:
                pictures.save(batch, surprises)
        reader.unreadable.check(at_end=True)
