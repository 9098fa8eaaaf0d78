"""Configuration of the hybrid model: what it looks like, which losses it learns from, and the named sizes."""

from .version import REQUIREMENT  # noqa: F401  # isort: skip

import difflib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Every Auto class loads from one checkpoint, with the package or with `trust_remote_code=True`.
AUTO_MAP = {
    "AutoConfig": "configuration_hybrid.HybridConfig",
    "AutoModel": "modeling_hybrid.HybridModel",
    "AutoModelForPreTraining": "pretraining_hybrid.HybridForPreTraining",
    "AutoModelForCausalLM": "modeling_hybrid.HybridForImageGeneration",
    "AutoModelForImageClassification": "modeling_hybrid.HybridForImageClassification",
}

# What `SentenceTransformer` reads, beside the width of `pooler_output`: its own pooling gets that as a single token.
SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        },
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"image": {"method": "feature_tokens", "method_output_name": None}},
        "module_output_name": "token_embeddings",
    },
    "1_Pooling/config.json": {"pooling_mode": "mean"},
}

# Width and depth of the named sizes. `base` has ViT-B's width and depth.
NAMED_SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "image_size": 8,
        "num_channels": 1,
        "patch_size": 2,
        "num_levels": 17,
        "hidden_size": 64,
        "num_encoder_layers": 4,
        "num_decoder_layers": 2,
        "num_attention_heads": 4,
        "projection_hidden_size": 256,
        "projection_dim": 64,
        "depth_hidden_size": 64,
    },
    "small": {
        "hidden_size": 256,
        "num_encoder_layers": 6,
        "num_decoder_layers": 2,
        "num_attention_heads": 8,
        "projection_hidden_size": 1024,
        "projection_dim": 128,
        "depth_hidden_size": 128,
    },
    "base": {
        "hidden_size": 768,
        "num_encoder_layers": 9,
        "num_decoder_layers": 3,
        "num_attention_heads": 12,
        "projection_hidden_size": 2048,
        "projection_dim": 256,
        "depth_hidden_size": 256,
    },
}


def unknown_key_message(key: str, known: list[str], where: str) -> str:
    """One sentence that names the unknown `key`, and the nearest known one."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return (
        f"{where} has no key {key!r}; the nearest known key is {nearest[0]!r}. Known keys: {', '.join(sorted(known))}."
    )


@strict
class HybridConfig(PreTrainedConfig):
    r"""
    Configuration of every model class of this package. Types are checked at construction and on assignment. Keys of
    others, such as `quantization_config`, are kept as they are.

    Args:
        image_size (`int`, *optional*, defaults to 32): Height and width of an image, in pixels.
        num_channels (`int`, *optional*, defaults to 3): 1 for grey, 3 for RGB.
        patch_size (`int`, *optional*, defaults to 4): Side of a square patch; must divide `image_size`.
        num_levels (`int`, *optional*, defaults to 256): Values that one channel of a pixel can take.
        num_view_kinds (`int`, *optional*, defaults to 2): Kinds of view a sequence can be tagged with; kind 0 is the
            clean image, and the one that is scored and sampled by default; kind 1 is an augmented view, kind 2 a local
            one (a small crop).
        hidden_size (`int`, *optional*, defaults to 256): Width of encoder and decoder.
        num_encoder_layers (`int`, *optional*, defaults to 6): Layers whose output is pooled into features.
        num_decoder_layers (`int`, *optional*, defaults to 2): Layers between the encoder and the depth head.
        num_attention_heads (`int`, *optional*, defaults to 8): Must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the feed-forward layers; four times `hidden_size` if unset.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the feed-forward layers.
        hidden_dropout (`float`, *optional*, defaults to 0.0): Dropout on embeddings and residual branches.
        attention_dropout (`float`, *optional*, defaults to 0.0): Dropout on attention weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of every layer norm.
        code_embedding_size (`int`, *optional*, defaults to 16): Width in which one code is embedded before the codes
            of a patch are joined and projected to `hidden_size`.
        encoder_attention (`str`, *optional*, defaults to `"causal"`): `"causal"`: one pass gives features and
            likelihood. `"bidirectional"`: features only, the likelihood is off (the contrastive-only control).
            `"two_pass"`: a causal pass for the likelihood and a second, bidirectional one for the features.
        pooling (`str`, *optional*, defaults to `"attention"`): `"attention"` (learned), `"mean"`, `"regional"` (the
            means over the regions of a grid, joined: `pooler_output` is as many times as wide), or `"contextual"` (a
            bidirectional layer that only the features pass through, then regional).
        pooling_grid (`int`, *optional*, defaults to 2): Regions a side in regional and contextual pooling, so 2 for the
            four quadrants; as many as there are patches a side keeps every patch apart. The detector has such regions
            whatever the pooling.
        features_from (`str`, *optional*, defaults to `"encoder"`): What the encoder class, the classifier and the
            pipelines give as `pooler_output`: the pooled features of the `"encoder"`; those of the `"decoder"`
            (informative embeddings: the states of the decoder under teacher forcing, averaged), which every checkpoint
            with a likelihood has without further training; or both `"joined"`. The losses, the condition and the
            detector know the encoder's alone.
        code_distribution (`str`, *optional*, defaults to `"softmax"`): What the depth head gives the codes of a patch:
            `"softmax"` (any distribution over levels, one code after the other), or `"logistic_mixture"` (a mixture of
            discretised logistics for each pixel: its cost does not grow with the levels, which must be ordered, as
            those of images are).
        num_mixture_components (`int`, *optional*, defaults to 5): Logistics of a pixel in a logistic mixture.
        depth_hidden_size (`int`, *optional*, defaults to 128): Width of the depth head; of each pixel in a logistic
            mixture, where 32 is enough and the next two have no meaning.
        num_depth_layers (`int`, *optional*, defaults to 1): Feed-forward layers of the depth head.
        num_depth_groups (`int`, *optional*, defaults to 8): Groups of channels of the depth head that look at the
            earlier codes of the patch each in its own way; must divide `depth_hidden_size`.
        projection_hidden_size (`int`, *optional*, defaults to 1024): Width inside the projector.
        projection_dim (`int`, *optional*, defaults to 128): Width of the contrastive space.
        objective (`dict`, *optional*): Name and arguments of the contrastive objective, for instance
            `{"name": "info_nce", "temperature": 0.2}`; `modeling_hybrid.objectives.OBJECTIVES` has the names.
        contrastive_weight (`float`, *optional*, defaults to 0.1): Weight of the contrastive loss; 0 switches it off.
        generative_weight (`float`, *optional*, defaults to 1.0): Weight of the generative loss (nats per code);
            0 switches it off.
        generative_share (`float`, *optional*, defaults to 1.0): Share of the images of each view whose likelihood a
            training step learns from, drawn anew at each step; below 1 they are encoded in a call of their own, and the
            others cost no decoder. Outside of training every image is scored.
        num_generative_views (`int`, *optional*): Views of an image whose likelihood is in the loss, the first ones (the
            training loop puts the clean one first); all if unset. A loss that is not learnt from would only blur which
            checkpoint is the best, so this holds outside of training too.
        decoder_condition (`str`, *optional*, defaults to `"none"`): `"features"`: the decoder can be told the pooled
            features of an image, or nothing, so that it gives p(image | features) beside p(image), and draws images
            from features. `"latent"`: it is told a sample of a Gaussian code of the image, `projection_dim` numbers,
            always, and the codes are what the contrastive objective sees (cMIM, with the objective `cmim`); such a
            model has p(image | latent) alone, and of p(image) an estimate. `"none"`: it cannot be told anything. The
            encoder never is.
        condition_share (`float`, *optional*, defaults to 0.5): Share of the images whose likelihood a training step
            learns with the features of another view of the same image; it learns that of the others without.
        condition_noise (`float`, *optional*, defaults to 0.0): Standard deviation of the noise that a training step
            adds to the features it tells, where those of an image have 1; generation then tolerates features that no
            image has.
        condition_gradient (`bool`, *optional*, defaults to `False`): Whether the likelihood changes the features that
            it is told; else they stay what the contrastive loss makes of them.
        num_density_components (`int`, *optional*, defaults to 0): Gaussians of the density of the features that the
            checkpoint holds, which `fit_feature_density` sets; 0 where it holds none.

    Raises:
        ValueError: a key that is likely a misspelt one of these, or the name of a derived size. In the file of a
            checkpoint, where a later version or another library may have written it, that is a warning.
        StrictDataclassError (of huggingface_hub): a wrong type, sizes that do not divide, or a combination that has no
            meaning.
    """

    model_type = "hybrid_gcrl"

    image_size: int = 32
    num_channels: int = 3
    patch_size: int = 4
    num_levels: int = 256
    num_view_kinds: int = 2
    hidden_size: int = 256
    num_encoder_layers: int = 6
    num_decoder_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-6
    code_embedding_size: int = 16
    encoder_attention: Literal["causal", "bidirectional", "two_pass"] = "causal"
    pooling: Literal["attention", "contextual", "mean", "regional"] = "attention"
    pooling_grid: int = 2
    features_from: Literal["encoder", "decoder", "joined"] = "encoder"
    code_distribution: Literal["softmax", "logistic_mixture"] = "softmax"
    num_mixture_components: int = 5
    depth_hidden_size: int = 128
    num_depth_layers: int = 1
    num_depth_groups: int = 8
    projection_hidden_size: int = 1024
    projection_dim: int = 128
    objective: dict[str, Any] | None = None
    contrastive_weight: float | int = 0.1
    generative_weight: float | int = 1.0
    generative_share: float | int = 1.0
    num_generative_views: int | None = None
    decoder_condition: Literal["none", "features", "latent"] = "none"
    condition_share: float | int = 0.5
    condition_noise: float | int = 0.0
    condition_gradient: bool = False
    num_density_components: int = 0

    def __post_init__(self, **kwargs):
        for key in kwargs:
            if self.is_likely_misspelt(key):
                raise ValueError(unknown_key_message(key, self.own_keys(), type(self).__name__))
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.objective is None:
            self.objective = {"name": "info_nce", "temperature": 0.2}
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs):
        # Models call it as well, so that every checkpoint has these files.
        super().save_pretrained(save_directory, **kwargs)
        for name, content in SENTENCE_TRANSFORMERS.items():
            if name.startswith("1_Pooling"):
                content = content | {"embedding_dimension": self.feature_size}
            path = Path(save_directory, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def own_keys(cls) -> list[str]:
        """The fields that this class adds to those of transformers."""
        return list(HybridConfig.__annotations__)

    @classmethod
    def is_likely_misspelt(cls, key: str) -> bool:
        """Whether `key`, which is no field, is so close to one that it is meant, or is a derived size."""
        if key == "num_labels":  # of transformers, and close to `num_levels`
            return False
        return cls.is_derived(key) or bool(difflib.get_close_matches(key, cls.own_keys(), n=1, cutoff=0.8))

    @classmethod
    def is_derived(cls, key: str) -> bool:
        """Whether `key` is a size that follows from the fields."""
        return isinstance(vars(HybridConfig).get(key), property)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        As in transformers, but a configuration of another kind of model is refused.

        Raises:
            ValueError: `model_type` is another one.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is a checkpoint of model_type={model_type!r}, {cls.__name__} reads {cls.model_type!r}; load it "
                "with the class it was saved from, or with an Auto class."
            )
        known = {field.name for field in fields(cls)}
        odd = {key: value for key, value in config_dict.items() if key not in known and cls.is_likely_misspelt(key)}
        loaded = super().from_dict({key: value for key, value in config_dict.items() if key not in odd}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for key, value in odd.items():
            logger.warning_once(f"Nothing reads {key!r}: {unknown_key_message(key, cls.own_keys(), cls.__name__)}")
            if not cls.is_derived(key):
                setattr(config, key, value)
        return loaded

    @classmethod
    def from_size(cls, size: str, **overrides) -> "HybridConfig":
        """
        The configuration of a named size, with fields overridden by keyword. Parameters of:

        | size      | `HybridForPreTraining` | `HybridForImageGeneration` | `HybridModel` |
        |-----------|-----------------------:|---------------------------:|--------------:|
        | `"tiny"`  |                445,861 |                    345,957 |       210,068 |
        | `"small"` |              9,782,536 |                  8,334,472 |     5,024,776 |
        | `"base"`  |            102,469,900 |                 96,165,900 |    65,037,580 |

        Raises:
            ValueError: `size` is no named size.
        """
        if size not in NAMED_SIZES:
            raise ValueError(f"size={size!r} is not a named size; choose one of {', '.join(NAMED_SIZES)}.")
        return cls(**(NAMED_SIZES[size] | overrides))

    @property
    def num_patches(self) -> int:
        """S, the patches (positions) of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_codes(self) -> int:
        """K, the codes of a patch."""
        return self.num_channels * self.patch_size**2

    @property
    def num_dims(self) -> int:
        """C * H * W, the subpixels over which bits per dimension are taken; equals S * K."""
        return self.num_channels * self.image_size**2

    @property
    def num_hidden_layers(self) -> int:
        """Layers that hold a cache: those of the encoder, then those of the decoder."""
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def has_likelihood(self) -> bool:
        """Whether the model learns p(image), and so scores images."""
        return self.has_decoder and not self.has_latent

    @property
    def has_decoder(self) -> bool:
        """Whether the model learns from the likelihood, and so samples images."""
        return self.generative_weight > 0

    @property
    def has_contrast(self) -> bool:
        """Whether the model learns from the contrastive objective."""
        return self.contrastive_weight > 0

    @property
    def has_both_losses(self) -> bool:
        """Whether both losses are switched on."""
        return self.has_decoder and self.has_contrast

    @property
    def has_condition(self) -> bool:
        """Whether the decoder can be told something of an image: its features, or its latent."""
        return self.decoder_condition != "none"

    @property
    def has_latent(self) -> bool:
        """Whether the decoder is told a latent of each image, without which it has no likelihood."""
        return self.decoder_condition == "latent"

    @property
    def condition_size(self) -> int:
        """Width of what the decoder can be told."""
        return self.projection_dim if self.has_latent else self.pooled_size

    @property
    def features_are_causal(self) -> bool:
        """Whether the features are made of the very states that the likelihood is made of."""
        return self.encoder_attention == "causal"

    @property
    def has_regions(self) -> bool:
        """Whether the features are the means over a grid of regions, joined."""
        return self.pooling in ("contextual", "regional")

    @property
    def regional_size(self) -> int:
        """Width of the means over the grid of regions, joined."""
        return self.hidden_size * self.pooling_grid**2

    @property
    def pooled_size(self) -> int:
        """Width of the pooled features of the encoder, and of those of the decoder."""
        return self.regional_size if self.has_regions else self.hidden_size

    @property
    def feature_size(self) -> int:
        """Width of the `pooler_output` that users see (`features_from`)."""
        return self.pooled_size * (2 if self.features_from == "joined" else 1)

    def validate_sizes(self):
        positive = (
            "image_size num_channels patch_size num_view_kinds hidden_size num_encoder_layers num_attention_heads "
            "intermediate_size code_embedding_size pooling_grid depth_hidden_size num_depth_groups "
            "num_mixture_components "
            "projection_hidden_size projection_dim"
        )
        for name in positive.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("num_decoder_layers", "num_depth_layers", "num_density_components"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        if not 2 <= self.num_levels <= 256:
            raise ValueError(f"num_levels={self.num_levels} must lie in 2..256, the values an 8-bit channel can hold.")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels={self.num_channels} must be 1 (grey) or 3 (RGB).")
        for large, small in (
            ("image_size", "patch_size"),
            ("hidden_size", "num_attention_heads"),
            ("depth_hidden_size", "num_depth_groups"),
        ):
            if getattr(self, large) % getattr(self, small):
                raise ValueError(
                    f"{large}={getattr(self, large)} is not a multiple of {small}={getattr(self, small)}; "
                    f"change one of the two."
                )
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of 4: the positions start as sines and cosines "
                "of two coordinates."
            )
        num_patches_a_side = self.image_size // self.patch_size
        if self.has_regions and self.pooling_grid > num_patches_a_side:
            raise ValueError(
                f"pooling_grid={self.pooling_grid} must be at most {num_patches_a_side}, the patches a side "
                f"(image_size={self.image_size}, patch_size={self.patch_size})."
            )

    def validate_rates(self):
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be positive.")

    def validate_activation(self):
        if self.hidden_act not in ACT2FN:
            raise ValueError(unknown_key_message(self.hidden_act, list(ACT2FN), "The table of hidden_act"))

    def validate_losses(self):
        for name in ("contrastive_weight", "generative_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 (off) or positive.")
        if not 0 < self.generative_share <= 1:
            raise ValueError(f"generative_share={self.generative_share} must lie in (0, 1].")
        if self.num_generative_views is not None and self.num_generative_views < 1:
            raise ValueError(f"num_generative_views={self.num_generative_views} must be at least 1, or None for all.")
        if not (self.has_contrast or self.has_decoder):
            raise ValueError("contrastive_weight and generative_weight are both 0: the model would learn nothing.")
        if self.encoder_attention == "bidirectional" and self.has_decoder:
            raise ValueError(
                f"encoder_attention='bidirectional' has no likelihood (every state has seen the whole image), but "
                f"generative_weight={self.generative_weight}; set generative_weight=0, or encoder_attention='causal' "
                "or 'two_pass'."
            )
        if self.features_from != "encoder" and self.has_latent:
            raise ValueError(
                f"features_from={self.features_from!r} reads a decoder that is told nothing, which one with "
                "decoder_condition='latent' never is; set features_from='encoder', or call decoder_features()."
            )
        if self.features_from != "encoder" and not self.has_decoder:
            raise ValueError(
                f"features_from={self.features_from!r} reads the decoder, which is off (generative_weight=0); set "
                "features_from='encoder', or train with generative_weight above 0."
            )
        if not 0 < self.condition_share <= 1:
            raise ValueError(f"condition_share={self.condition_share} must lie in (0, 1].")
        if not 0 <= self.condition_noise < math.inf:
            raise ValueError(f"condition_noise={self.condition_noise} must be 0 (off) or positive.")
        if self.has_condition and not self.has_decoder:
            raise ValueError(
                f"decoder_condition={self.decoder_condition!r} conditions the likelihood, which is off "
                "(generative_weight=0); raise generative_weight, or set decoder_condition='none'."
            )
        if self.has_condition and self.num_decoder_layers == 0:
            raise ValueError(
                f"decoder_condition={self.decoder_condition!r} is told to the layers of the decoder, but "
                "num_decoder_layers=0; raise it, or set decoder_condition='none'."
            )
        if self.objective is not None and not isinstance(self.objective.get("name"), str):
            raise ValueError(f"objective={self.objective} has no 'name'; write for instance {{'name': 'info_nce'}}.")


__all__ = ["NAMED_SIZES", "HybridConfig"]
