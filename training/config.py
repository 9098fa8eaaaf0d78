"""The typed tree of everything a run can set, and how a YAML file and `key=value` overrides fill it."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import reduce
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from modeling_hybrid import HybridConfig
from modeling_hybrid.configuration_hybrid import unknown_key_message
from modeling_hybrid.modeling_hybrid import build_objective
from modeling_hybrid.objectives import OBJECTIVES, objective_class
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL


@dataclass
class DataConfig:
    """What to learn from. Labels are used by the evaluation, and by objectives that learn from classes (sup_con)."""

    # "digits" (embedded in scikit-learn), or the first argument of `datasets.load_dataset`: a Hub id, a local dataset,
    # or a builder such as "imagefolder" or "parquet".
    dataset: str = MISSING
    # Further arguments of `load_dataset`: name, data_dir, data_files, revision, ...
    arguments: dict[str, Any] = field(default_factory=dict)
    image_column: str = "image"
    label_column: str | None = "label"
    # Images that share a value of this column are never split between training and validation.
    group_column: str | None = None
    train_split: str = "train"
    # Cut from the training split where unset.
    validation_split: str | None = None
    validation_fraction: float = 0.1
    # Without a test split the validation split is what the final evaluation reports.
    test_split: str | None = "test"
    split_seed: int = 0
    streaming: bool = False
    # Images held in the shuffle buffer when streaming.
    shuffle_buffer: int = 10_000
    # Files that cannot be read are skipped and named; above this share the run is refused.
    max_unreadable_share: float = 0.01
    # Processes beside the training: they convert the images before it, and one of them reads ahead while it runs.
    num_workers: int = 0


@dataclass
class AugmentationConfig:
    """Ranges of the augmented views; each image draws its own values. An empty range or a zero switches one off."""

    num_clean_views: int = 1
    num_augmented_views: int = 1
    # Small crops, tagged as a kind of their own, and the share of the area that they keep.
    num_local_views: int = 0
    local_crop_area: list[float] = field(default_factory=lambda: [0.1, 0.4])
    # Share of the area that a random crop keeps, and its aspect ratio.
    crop_area: list[float] = field(default_factory=list)
    crop_aspect: list[float] = field(default_factory=lambda: [0.75, 1.333])
    flip_probability: float = 0.0
    rotation_degrees: float = 0.0
    # Shift, as a share of the side.
    shift: float = 0.0
    scale: list[float] = field(default_factory=list)
    shear_degrees: float = 0.0
    # What shows where the image was moved away: "zeros" (black), "border" or "reflection".
    padding: str = "border"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    # Of the four above together.
    jitter_probability: float = 0.8
    grey_probability: float = 0.0
    gamma: list[float] = field(default_factory=list)
    blur_sigma: list[float] = field(default_factory=list)
    blur_probability: float = 0.5
    # Standard deviation of Gaussian noise, on a scale of black 0 to white 1.
    noise: float = 0.0
    # Share of the area that is erased, with the probability below.
    erase_area: list[float] = field(default_factory=list)
    erase_probability: float = 0.5

    def view_kinds(self) -> list[int]:
        """The kind of each view of an image."""
        return [CLEAN] * self.num_clean_views + [AUGMENTED] * self.num_augmented_views + [LOCAL] * self.num_local_views


@dataclass
class OptimizationConfig:
    num_steps: int = 1000
    # Images of one process and one forward pass; every image gives all its views.
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    # Images that are held in memory at a time: above 0, a pass takes the batch in chunks of this size, forward twice,
    # with the very gradient of the whole batch (GradCache).
    chunk_size: int = 0
    learning_rate: float = 1e-3
    # An AdamW of its own for each loss: model.contrastive_weight then scales the contrastive update, not its gradient.
    separate_moments: bool = False
    final_learning_rate_share: float = 0.0
    num_warmup_steps: int = 100
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    max_gradient_norm: float = 1.0
    # "fp32", or autocast to "bf16" or "fp16" with weights and losses in fp32.
    precision: str = "fp32"
    compile: bool = False
    gradient_checkpointing: bool = False


@dataclass
class LoggingConfig:
    # Any tracker that Accelerate knows by name: tensorboard, wandb, mlflow, ...
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    log_every: int = 20
    evaluate_every: int = 200
    checkpoint_every: int = 200


SUITE = (
    "discrimination",
    "retrieval",
    "likelihood",
    "out_of_distribution",
    "robustness",
    "adversarial",
    "calibration",
    "generation",
    "health",
    "finetuning",
    "validation",
)


@dataclass
class EvaluationConfig:
    # Questions to ask, each answered by the file of its name in `evaluation/`.
    suite: list[str] = field(default_factory=lambda: list(SUITE))
    batch_size: int = 256
    # Few-shot: labels per class (the headline figure, then further ones), and how many draws of them are averaged.
    num_shots: int = 10
    further_num_shots: list[int] = field(default_factory=lambda: [1, 5, 100])
    num_draws: int = 10
    # Steps of fine-tuning the whole encoder for classification; 0 for none.
    num_finetuning_steps: int = 0
    # Upper bound on the images that are embedded and scored, per split; 0 for all.
    max_images: int = 0
    # Generated images that are shown, and those that are compared with images of the data; 0 compares none.
    num_samples: int = 64
    num_scored_samples: int = 512
    # What images are compared by: a "classifier" of the training images, or "inception" (with torch-fidelity).
    generation_features: str = "classifier"
    # Images of each out-of-distribution set, and test images that are corrupted.
    num_out_of_distribution: int = 512


@dataclass
class CardConfig:
    """Facts for the model card that no measurement gives."""

    model_name: str = "hybrid-model"
    dataset_name: str | None = None
    license: str = "apache-2.0"
    data_description: str = ""
    limitations: str = ""


@dataclass
class PretrainConfig:
    output_dir: str = MISSING
    seed: int = 0
    overwrite: bool = False
    # A named size under `size`, and any field of HybridConfig.
    model: dict[str, Any] = field(default_factory=lambda: {"size": "small"})
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    card: CardConfig = field(default_factory=CardConfig)

    def model_config(self, num_train_images: int = 1) -> HybridConfig:
        """
        Args:
            num_train_images: for objectives that keep a state per image.

        Raises:
            ValueError: no such size or field, or a value that `HybridConfig` or the objective refuses.
        """
        arguments = dict(self.model)
        size = arguments.pop("size", None)
        try:
            config = HybridConfig(**arguments) if size is None else HybridConfig.from_size(size, **arguments)
        except StrictDataclassError as error:
            raise ValueError(f"model: {error.__cause__ or error}") from None
        name = config.objective["name"]
        if name in OBJECTIVES and "num_samples" in inspect.signature(objective_class(name)).parameters:
            given = config.objective.get("num_samples", num_train_images)
            if given < num_train_images:
                raise ValueError(
                    f"model.objective.num_samples={given} is less than the {num_train_images} training images; leave "
                    "it out, and it is set to their number."
                )
            config.objective = config.objective | {"num_samples": given}
        build_objective(config)
        return config

    def validate(self) -> None:
        """Raise `ValueError` on values that would fail, or mislead, only after the training has begun."""
        for expected, is_valid, names in _RULES:
            for name in names.split():
                value = reduce(getattr, name.split("."), self)
                if not is_valid(value):
                    raise ValueError(f"{name}={value!r} must be {expected}.")
        self._validate_together()

    def _validate_together(self) -> None:
        model, data, augmentation = self.model_config(), self.data, self.augmentation
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
        if model.contrastive_weight > 0:
            self._validate_objective(model, kinds)
        if self.optimization.chunk_size > 0 and self.optimization.compile:
            raise ValueError(
                f"optimization.chunk_size={self.optimization.chunk_size} cannot be compiled; set chunk_size=0 or "
                "compile=false."
            )
        if self.optimization.separate_moments:
            self._validate_separate_moments(model)
        for name in ("saturation", "hue", "grey_probability"):
            if getattr(augmentation, name) > 0 and model.num_channels == 1:
                raise ValueError(
                    f"augmentation.{name}={getattr(augmentation, name)} changes colours, but the images are grey "
                    "(model.num_channels=1); set it to 0."
                )
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

    def _validate_separate_moments(self, model: HybridConfig) -> None:
        if min(model.contrastive_weight, model.generative_weight) == 0:
            raise ValueError(
                f"optimization.separate_moments=true needs both losses, but model.contrastive_weight="
                f"{model.contrastive_weight} and generative_weight={model.generative_weight}; set "
                "separate_moments=false."
            )
        chunk_size, accumulated = self.optimization.chunk_size, self.optimization.gradient_accumulation_steps
        if chunk_size > 0 or accumulated > 1 or self.optimization.precision == "fp16":
            raise ValueError(
                "optimization.separate_moments=true takes the whole batch in one pass, in fp32 or bf16, but "
                f"chunk_size={chunk_size}, gradient_accumulation_steps={accumulated}, precision="
                f"{self.optimization.precision}; set chunk_size=0, gradient_accumulation_steps=1 and precision=bf16, "
                "or separate_moments=false."
            )

    def _validate_objective(self, model: HybridConfig, kinds: list[int]) -> None:
        """Every part of a batch that the objective needs, the data and the augmentation must be able to give."""
        data, augmentation, name = self.data, self.augmentation, model.objective["name"]
        objective = build_objective(model)
        try:
            objective.check_views(kinds, self.optimization.batch_size)
        except ValueError as error:
            raise ValueError(
                f"optimization.batch_size={self.optimization.batch_size}, augmentation.num_clean_views="
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
        turning = {key: getattr(augmentation, key) for key in ("rotation_degrees", "shear_degrees")}
        if "boxes" in objective.needs and any(turning.values()):
            raise ValueError(
                f"Objective {name!r} matches patches by the upright box that each view shows of its image, but "
                f"{', '.join(f'augmentation.{key}={value}' for key, value in turning.items())}; set both to 0."
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
        "evaluation.max_images evaluation.num_finetuning_steps evaluation.num_scored_samples "
        "augmentation.num_clean_views augmentation.num_augmented_views "
        "augmentation.num_local_views augmentation.rotation_degrees "
        "augmentation.shear_degrees augmentation.brightness augmentation.contrast augmentation.saturation "
        "augmentation.noise",
    ),
    ("positive", lambda value: 0 < value < inf, "optimization.learning_rate optimization.max_gradient_norm"),
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


def _nearest_known_key(error: OmegaConfBaseException) -> str:
    """The complaint about an unknown key, with the section it stands in and the nearest key of that section."""
    section: type = PretrainConfig
    *path, key = (error.full_key or str(error.key)).split(".")
    for name in path:
        section = next(f.type for f in fields(section) if f.name == name)
    where = f"section {'.'.join(path)!r}" if path else "The configuration"
    return unknown_key_message(key, [f.name for f in fields(section)], where)


def load_config(path: str | Path, overrides: list[str] = ()) -> PretrainConfig:
    """
    The configuration in the YAML file `path`, with `section.key=value` overrides applied on top, validated.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value of another type, a missing value, a
            malformed override, or a combination that cannot train.
        FileNotFoundError: no such file.
    """
    for override in overrides:
        if not re.match(r"[\w-]+(\.[\w-]+)*=", override):
            raise ValueError(
                f"Override {override!r} is not of the form key=value, for instance optimization.num_steps=10."
            )
    try:
        tree = OmegaConf.merge(
            OmegaConf.structured(PretrainConfig), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))
        )
        config = OmegaConf.to_object(tree)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ValueError(_nearest_known_key(error)) from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{error.full_key}: {reason}" if error.full_key else reason) from None
    except (TypeError, YAMLError) as error:
        raise ValueError(f"{path} or an override is not a tree of keys and values: {error}") from None
    config.validate()
    return config


def to_dict(config: PretrainConfig) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.structured(config))


def save_config(config: PretrainConfig, path: str | Path) -> None:
    OmegaConf.save(OmegaConf.structured(config), path)


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """Dotted names of the values in which two configurations differ."""
    if is_dataclass(one):
        one, other = to_dict(one), to_dict(other)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix]
    keys = sorted(one.keys() | other.keys())
    return [name for key in keys for name in differences(one.get(key), other.get(key), f"{prefix}.{key}".lstrip("."))]
