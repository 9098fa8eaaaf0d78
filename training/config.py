"""The typed tree of everything a run can set, and how a YAML file and `key=value` overrides fill it."""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from modeling_hybrid import HybridConfig
from modeling_hybrid.configuration_hybrid import unknown_key_message


@dataclass
class DataConfig:
    """What to learn from. Labels are used by the evaluation only, never by pre-training."""

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
    num_workers: int = 0


@dataclass
class AugmentationConfig:
    """Ranges of the augmented views; each image draws its own values. An empty range or a zero switches one off."""

    num_clean_views: int = 1
    num_augmented_views: int = 1
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
    grey_probability: float = 0.0
    gamma: list[float] = field(default_factory=list)
    blur_sigma: list[float] = field(default_factory=list)
    # Standard deviation of Gaussian noise, on a scale of black 0 to white 1.
    noise: float = 0.0
    # Share of the area that is erased, with the probability below.
    erase_area: list[float] = field(default_factory=list)
    erase_probability: float = 0.5


@dataclass
class OptimizationConfig:
    num_steps: int = 1000
    # Images of one process and one forward pass; every image gives all its views.
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    final_learning_rate_share: float = 0.0
    num_warmup_steps: int = 100
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    max_gradient_norm: float = 1.0
    # "no", "bf16" or "fp16".
    mixed_precision: str = "no"
    compile: bool = False
    gradient_checkpointing: bool = False


@dataclass
class LoggingConfig:
    # Any tracker that Accelerate knows by name: tensorboard, wandb, mlflow, ...
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    log_every: int = 20
    evaluate_every: int = 200
    checkpoint_every: int = 200


@dataclass
class EvaluationConfig:
    batch_size: int = 256
    num_neighbours: int = 5
    # Few-shot: labels per class, and how many draws of them are averaged.
    num_shots: int = 10
    num_draws: int = 10
    # Upper bound on the images that are embedded and scored, per split; 0 for all.
    max_images: int = 0
    num_samples: int = 64
    # Images of each out-of-distribution set.
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

    def model_config(self) -> HybridConfig:
        arguments = dict(self.model)
        size = arguments.pop("size", None)
        return HybridConfig(**arguments) if size is None else HybridConfig.from_size(size, **arguments)

    def validate(self) -> None:
        """Raise `ValueError` on values that would fail, or mislead, only after the training has begun."""
        model, optimization, augmentation = self.model_config(), self.optimization, self.augmentation
        num_views = augmentation.num_clean_views + augmentation.num_augmented_views
        if augmentation.num_clean_views < 0 or augmentation.num_augmented_views < 0 or num_views < 1:
            raise ValueError(
                f"augmentation.num_clean_views={augmentation.num_clean_views} and num_augmented_views="
                f"{augmentation.num_augmented_views} must not be negative, and one of them positive."
            )
        if model.contrastive_weight > 0 and num_views < 2:
            raise ValueError(
                f"A contrastive loss (contrastive_weight={model.contrastive_weight}) needs at least two views of an "
                f"image, not {num_views}; raise augmentation.num_augmented_views or set model.contrastive_weight=0."
            )
        if model.contrastive_weight > 0 and optimization.batch_size < 2:
            raise ValueError(
                f"optimization.batch_size={optimization.batch_size} leaves the contrastive loss without a negative; "
                "use at least 2, or set model.contrastive_weight=0."
            )
        for name in ("num_steps", "batch_size", "gradient_accumulation_steps"):
            if getattr(optimization, name) < 1:
                raise ValueError(f"optimization.{name}={getattr(optimization, name)} must be at least 1.")
        if optimization.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(
                f"optimization.mixed_precision={optimization.mixed_precision!r} must be 'no', 'bf16' or 'fp16'."
            )
        if not 0 < self.data.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction={self.data.validation_fraction} must lie in (0, 1).")


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
    malformed = [override for override in overrides if "=" not in override]
    if malformed:
        raise ValueError(
            f"Override {malformed[0]!r} is not of the form key=value, for instance optimization.num_steps=10."
        )
    try:
        tree = OmegaConf.merge(
            OmegaConf.structured(PretrainConfig), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))
        )
        config = OmegaConf.to_object(tree)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ValueError(_nearest_known_key(error)) from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {error.msg}" if error.full_key else str(error)) from None
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
