"""
A teacher: a network that does not learn, and what it sees in images.

Shape letters: N images, C channels, H height, W width, T width of the teacher's features.
"""

import torch
from transformers import AutoImageProcessor, AutoModel

from modeling_hybrid import HybridConfig, HybridImageProcessor
from modeling_hybrid.levels import levels_to_pixels

from ..evaluation.imagenet import imagenet_features
from ..hardware import best_device


IMAGENET = "imagenet"
_BATCH_SIZE = 64


def teacher_features(teacher: str, config: HybridConfig, *splits: torch.Tensor) -> list[torch.Tensor]:
    """
    What the teacher sees in levels (N, C, H, W) of each split: (N, T), each column with mean 0 and standard deviation 1
    over the images of the first.

    Args:
        teacher: "imagenet" for the network of the extra `imagenet`; else a checkpoint that `AutoModel` loads with its
            image processor, of ours or of any image model of transformers: its `pooler_output`, or the mean of its last
            states.
        config: of the model whose images they are.

    Raises:
        ValueError: there is no such teacher, or it is no image model.
    """
    of_levels = _imagenet(config) if teacher == IMAGENET else _pretrained(teacher, config)
    rows = [torch.cat([of_levels(batch).float().cpu() for batch in levels.split(_BATCH_SIZE)]) for levels in splits]
    mean, spread = rows[0].mean(dim=0), rows[0].std(dim=0, correction=0)
    # A column that says nothing of the training images stays silent.
    return [(part - mean) / spread.where(spread > 1e-6 * mean.abs(), torch.inf) for part in rows]


def _imagenet(config: HybridConfig):
    return lambda levels: torch.from_numpy(imagenet_features(levels, config.num_levels))


def _pretrained(teacher: str, config: HybridConfig):
    try:
        model, loading = AutoModel.from_pretrained(teacher, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(teacher)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"data.teacher={teacher!r} is neither {IMAGENET!r} nor an image model that AutoModel and "
            f"AutoImageProcessor load: {error}"
        ) from None
    # Of a model of images and text.
    model = getattr(model, "vision_model", model).to(best_device()).eval()
    # A checkpoint of a classifier may lack the pooler, whose weights were then drawn at random.
    has_pooler = not any("pooler" in key for key in loading["missing_keys"])
    ours = HybridImageProcessor.from_config(config)

    @torch.no_grad()
    def of_levels(levels: torch.Tensor) -> torch.Tensor:
        images = ours.pixels_to_images(levels_to_pixels(levels, config.num_levels))
        inputs = processor([image.convert("RGB") for image in images], return_tensors="pt").to(model.device)
        output = model(pixel_values=inputs["pixel_values"])
        if has_pooler and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)
        states = output.last_hidden_state
        # (N, positions, T), or maps (N, T, H, W).
        return states.mean(dim=1) if states.dim() == 3 else states.flatten(2).mean(dim=2)

    return of_levels
