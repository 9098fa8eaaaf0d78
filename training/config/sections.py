"""The typed tree of everything a run can set, with its defaults."""

import inspect
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from omegaconf import MISSING

from modeling_hybrid import HybridConfig
from modeling_hybrid.configuration_hybrid import unknown_key_message
from modeling_hybrid.objectives import OBJECTIVES, objective_class
from modeling_hybrid.objectives.base import AUGMENTED, CLEAN, LOCAL
from modeling_hybrid.pretraining_hybrid import build_objective


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
    # A .npy file with an integer for each training image, in their order: the images of a batch are of one of them.
    clusters: str | None = None
    # What an objective that learns from a teacher is shown: "imagenet" (the network of the extra `imagenet`), or a
    # checkpoint of an image model that `AutoModel` loads.
    teacher: str | None = None
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
    # Of decoder and head, as a multiple: the likelihood learns faster than features, which fast steps make fragile.
    decoder_rate_factor: float = 1.0
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


# The questions of an evaluation: a file each, and none is listed anywhere else.
SUITE = tuple(sorted(path.stem for path in (Path(__file__).parents[1] / "evaluation/questions").glob("[!_]*.py")))


@dataclass
class EvaluationConfig:
    # Questions to ask, each answered by the file of its name in `evaluation/questions/`; their order has no meaning.
    suite: list[str] = field(default_factory=lambda: list(SUITE))
    batch_size: int = 256
    # Few-shot: labels per class (the headline value, then further ones), and how many draws of them are averaged (fewer
    # of further ones that are more).
    num_shots: int = 10
    further_num_shots: list[int] = field(default_factory=lambda: [1, 5, 100])
    num_draws: int = 10
    # Steps of fine-tuning the whole encoder for classification; 0 for none.
    num_finetuning_steps: int = 0
    # Steps of a decoder that learns to read the frozen features, whatever encoder they are of; 0 for none.
    num_decoder_steps: int = 0
    # Steps that fit a linear head with a certified accuracy, on data that the encoder has not learnt from; 0 for none.
    num_certificate_steps: int = 0
    # Upper bound on the images that are embedded and scored, per split; 0 for all.
    max_images: int = 0
    # Generated images that are shown, and those that are compared with images of the data; 0 compares none.
    num_samples: int = 64
    num_scored_samples: int = 512
    # What images are compared by: a "classifier" of the training images, or "inception" (with torch-fidelity).
    generation_features: str = "classifier"
    # Images of each out-of-distribution set, and test images that are corrupted.
    num_out_of_distribution: int = 512
    # Whether the probes are fitted on features of an ImageNet network as well (with the extra `imagenet`).
    imagenet_control: bool = False
    # Data sets whose test images the question `novelty` holds against the data: what `datasets.load_dataset` knows.
    foreign_datasets: list[str] = field(default_factory=list)
    # Slow questions (adversarial, completions, generation, information, novelty, out_of_distribution, robustness) pass
    # many times over their images, and take fewer where these are large: as many as have so many subpixels together,
    # but 32 at least; 0 for no bound.
    max_subpixels: int = 2**19


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
    # Checkpoint whose weights the run begins with; what the model has beyond it begins at random.
    initial_model: str | None = None
    # On several processes: seconds without a step, after which a run ends and names the process that it waits for. More
    # than a validation or a checkpoint takes.
    stall_seconds: float = 1800.0
    # A named size under `size`, and any field of HybridConfig.
    model: dict[str, Any] = field(default_factory=lambda: {"size": "small"})
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    card: CardConfig = field(default_factory=CardConfig)

    def model_config(self, num_train_images: int = 1, teacher_size: int = 1) -> HybridConfig:
        """
        Args:
            num_train_images: for objectives that keep a state per image.
            teacher_size: width of the teacher's features, for objectives that learn from them.

        Raises:
            ValueError: no such size or field, or a value that `HybridConfig` or the objective refuses.
        """
        arguments = dict(self.model)
        size = arguments.pop("size", None)
        for key in arguments.keys() - {f.name for f in fields(HybridConfig)}:
            raise ValueError(unknown_key_message(key, HybridConfig.own_keys(), "section 'model'"))
        try:
            config = HybridConfig(**arguments) if size is None else HybridConfig.from_size(size, **arguments)
        except StrictDataclassError as error:
            raise ValueError(f"model: {error.__cause__ or error}") from None
        name = config.objective["name"]
        known = inspect.signature(objective_class(name)).parameters if name in OBJECTIVES else {}
        if "teacher_size" in known:
            config.objective = {"teacher_size": teacher_size} | config.objective
        if "num_samples" in known:
            given = config.objective.get("num_samples", num_train_images)
            if given < num_train_images:
                raise ValueError(
                    f"model.objective.num_samples={given} is less than the {num_train_images} training images; leave "
                    "it out, and it is set to their number."
                )
            config.objective = config.objective | {"num_samples": given}
        build_objective(config)
        return config
