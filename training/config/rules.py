"""What the values of a configuration must be, one by one and together: told before anything starts."""

from collections.abc import Callable
from functools import reduce
from importlib.util import find_spec
from math import inf
from typing import Any

from modeling_hybrid import HybridConfig
from modeling_hybrid.objectives.base import LOCAL
from modeling_hybrid.pretraining_hybrid import build_objective

from .sections import SUITE, PretrainConfig


def validate(config: PretrainConfig) -> None:
    """Raise `ValueError` on values that would fail, or mislead, only after the training has begun."""
    for expected, is_valid, names in _RULES:
        for name in names.split():
            value = reduce(getattr, name.split("."), config)
            if not is_valid(value):
                raise ValueError(f"{name}={value!r} must be {expected}.")
    model = config.model_config()
    _validate_views(config, model)
    if model.has_contrast:
        _validate_objective(config, model)
    _validate_optimization(config, model)
    _validate_data(config)


def _validate_views(config: PretrainConfig, model: HybridConfig) -> None:
    augmentation = config.augmentation
    kinds = augmentation.view_kinds()
    if not kinds:
        raise ValueError(
            "augmentation.num_clean_views, num_augmented_views and num_local_views are all 0; raise one of them."
        )
    if max(kinds) >= model.num_view_kinds:
        name = "num_local_views" if LOCAL in kinds else "num_augmented_views"
        raise ValueError(
            f"model.num_view_kinds={model.num_view_kinds} has no tag for such views; use {max(kinds) + 1}, or set "
            f"augmentation.{name}=0."
        )
    if LOCAL in kinds and not augmentation.local_crop_area:
        raise ValueError("augmentation.local_crop_area=[] makes no local views; set num_local_views=0 as well.")
    if model.decoder_condition == "features" and len(kinds) < 2:
        raise ValueError(
            "model.decoder_condition='features' learns from the features of another view of an image; raise "
            "augmentation.num_augmented_views, or set model.decoder_condition=none."
        )
    for name in ("saturation", "hue", "grey_probability"):
        if getattr(augmentation, name) > 0 and model.num_channels == 1:
            raise ValueError(
                f"augmentation.{name}={getattr(augmentation, name)} changes colours, but the images are grey "
                "(model.num_channels=1); set it to 0."
            )


def _validate_objective(config: PretrainConfig, model: HybridConfig) -> None:
    """Every part of a batch that the objective needs, the data and the augmentation must be able to give."""
    data, augmentation, name = config.data, config.augmentation, model.objective["name"]
    objective = build_objective(model)
    try:
        objective.check_views(augmentation.view_kinds(), config.optimization.batch_size)
    except ValueError as error:
        raise ValueError(
            f"optimization.batch_size={config.optimization.batch_size}, augmentation.num_clean_views="
            f"{augmentation.num_clean_views}, num_augmented_views={augmentation.num_augmented_views} and "
            f"num_local_views={augmentation.num_local_views} do not suit objective {name!r}: {error}"
        ) from None
    if "labels" in objective.needs and (data.label_column is None or data.streaming):
        raise ValueError(
            f"Objective {name!r} learns from labels, which data.label_column={data.label_column!r} with "
            f"data.streaming={data.streaming} does not give; name a column of a table that is not streamed."
        )
    if "sample_ids" in objective.needs and data.streaming:
        raise ValueError(
            f"Objective {name!r} keeps a state per image, which a stream cannot number; set data.streaming=false."
        )
    if ("teacher" in objective.needs) != (data.teacher is not None) or (data.teacher is not None and data.streaming):
        raise ValueError(
            f"Objective {name!r} {'learns' if 'teacher' in objective.needs else 'does not learn'} from a teacher, but "
            f"data.teacher={data.teacher!r} and data.streaming={data.streaming}; name a teacher for crd and "
            "feature_regression, with images that are not streamed, and set it to null for other objectives."
        )
    turning = {key: getattr(augmentation, key) for key in ("rotation_degrees", "shear_degrees")}
    if "boxes" in objective.needs and any(turning.values()):
        raise ValueError(
            f"Objective {name!r} matches patches by the upright box that each view shows of its image, but "
            f"{', '.join(f'augmentation.{key}={value}' for key, value in turning.items())}; set both to 0."
        )


def _validate_optimization(config: PretrainConfig, model: HybridConfig) -> None:
    optimization = config.optimization
    if optimization.chunk_size > 0 and optimization.compile:
        raise ValueError(
            f"optimization.chunk_size={optimization.chunk_size} cannot be compiled; set chunk_size=0 or compile=false."
        )
    if not optimization.separate_moments:
        return
    if not model.has_both_losses:
        raise ValueError(
            f"optimization.separate_moments=true needs both losses, but model.contrastive_weight="
            f"{model.contrastive_weight} and generative_weight={model.generative_weight}; set "
            "separate_moments=false."
        )
    if optimization.precision == "fp16":
        raise ValueError(
            "optimization.separate_moments=true needs gradients that are not scaled, but optimization.precision=fp16 "
            "scales them; set precision=bf16, or separate_moments=false."
        )


def _validate_data(config: PretrainConfig) -> None:
    data = config.data
    columns = [name for name in (data.image_column, data.label_column, data.group_column) if name is not None]
    if len(set(columns)) < len(columns):
        raise ValueError(
            f"data.image_column={data.image_column!r}, data.label_column={data.label_column!r} and "
            f"data.group_column={data.group_column!r} must be different columns; set what there is not to null."
        )
    if data.train_split in (data.validation_split, data.test_split):
        raise ValueError(
            f"data.train_split={data.train_split!r} is also the validation or the test split; set "
            "data.validation_split=null to cut one from the training split, data.test_split=null to do without."
        )
    if data.streaming and data.group_column is not None:
        raise ValueError(
            f"data.group_column={data.group_column!r} cannot be kept together in a stream; set it to null and name "
            "a data.validation_split, or set data.streaming=false."
        )
    if data.streaming and data.clusters is not None:
        raise ValueError(
            f"data.clusters={data.clusters!r} numbers the images of a table, not of a stream; set it to null, or "
            "data.streaming=false."
        )


def _grows_within(low: float, high: float) -> Callable[[list[float]], bool]:
    """Whether a list holds two numbers in (low, high], the first not above the second."""
    return lambda values: len(values) == 2 and low < values[0] <= values[1] <= high


# What each value must be, whether it is, and the values that this holds for.
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "at least 1",
        lambda value: value >= 1,
        "optimization.num_steps optimization.batch_size optimization.gradient_accumulation_steps logging.log_every "
        "logging.evaluate_every logging.checkpoint_every data.shuffle_buffer evaluation.batch_size "
        "evaluation.num_shots evaluation.num_draws evaluation.num_samples evaluation.num_out_of_distribution",
    ),
    (
        "0 or more",
        lambda value: 0 <= value < inf,
        "seed optimization.num_warmup_steps optimization.weight_decay optimization.chunk_size data.num_workers "
        "evaluation.num_finetuning_steps evaluation.num_decoder_steps evaluation.num_certificate_steps "
        "evaluation.num_scored_samples evaluation.max_subpixels "
        "augmentation.num_clean_views augmentation.num_augmented_views "
        "augmentation.num_local_views augmentation.rotation_degrees "
        "augmentation.shear_degrees augmentation.brightness augmentation.contrast augmentation.saturation "
        "augmentation.noise",
    ),
    ("0, for all of them, or at least 2", lambda value: value == 0 or value >= 2, "evaluation.max_images"),
    (
        "positive",
        lambda value: 0 < value < inf,
        "optimization.learning_rate optimization.decoder_rate_factor optimization.max_gradient_norm stall_seconds",
    ),
    (
        "in [0, 1]",
        lambda value: 0 <= value <= 1,
        "optimization.final_learning_rate_share data.max_unreadable_share augmentation.shift "
        "augmentation.flip_probability augmentation.jitter_probability augmentation.grey_probability "
        "augmentation.blur_probability augmentation.erase_probability",
    ),
    ("in [0, 0.5]", lambda value: 0 <= value <= 0.5, "augmentation.hue"),
    ("in (0, 1)", lambda value: 0 < value < 1, "data.validation_fraction"),
    ("two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v), "optimization.betas"),
    ("two growing positive numbers", _grows_within(0, inf), "augmentation.crop_aspect"),
    (
        "empty, or two growing positive numbers",
        lambda values: not values or _grows_within(0, inf)(values),
        "augmentation.scale augmentation.gamma augmentation.blur_sigma",
    ),
    (
        "empty, or two growing numbers in (0, 1]",
        lambda values: not values or _grows_within(0, 1)(values),
        "augmentation.crop_area augmentation.local_crop_area augmentation.erase_area",
    ),
    ("zeros, border or reflection", {"zeros", "border", "reflection"}.__contains__, "augmentation.padding"),
    (f"a list of some of {', '.join(SUITE)}", lambda names: set(names) <= set(SUITE), "evaluation.suite"),
    ("numbers of at least 1", lambda values: all(value >= 1 for value in values), "evaluation.further_num_shots"),
    (
        "classifier, or inception where torch-fidelity is installed (pip install torch-fidelity)",
        lambda value: value == "classifier" or (value == "inception" and find_spec("torch_fidelity") is not None),
        "evaluation.generation_features",
    ),
    ("fp32, bf16 or fp16", {"fp32", "bf16", "fp16"}.__contains__, "optimization.precision"),
]
