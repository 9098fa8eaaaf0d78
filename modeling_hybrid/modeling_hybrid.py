"""
The models that users load: features, likelihoods and samples, classes.

    image -> codes -> HybridModel (encoder) -> pooled features -> projector -> contrastive objective
                          '-> decoder -> depth head -> exact likelihood -> samples
                                 ^-- the features of an image, if the decoder is told any

`pretraining_hybrid.py` adds the losses, `detection_hybrid.py` the detector.

A design built on the idea of "Hybrid Generative-Contrastive Representation Learning" (Kim, Kim and Lee, 2021, arXiv
2106.06162), of which only the abstract was available to us; not a reproduction.

Shape letters: B batch, V views, C channels, H height, W width, S patches, K codes of a patch, L levels, D hidden size,
P width of the pooled feature, T positions of a sequence (the view tag, then patches).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .condition import FeatureCondition, Features, GaussianLatent, log_prior
from .configuration_hybrid import AUTO_MAP, HybridConfig
from .depth_head import DepthHead
from .feature_density import NOT_FITTED, FeatureDensity
from .generation_hybrid import HybridGenerationMixin
from .likelihood import at_least_float32, bits_per_dim, code_nll, in_chunks
from .logistic_mixture import LogisticMixtureHead
from .patch_codes import HybridEmbeddings, check, check_codes, codes_to_pixels, pixels_to_codes
from .pooling import POOLINGS, MeanPooling, RegionalPooling
from .transformer import HybridAttention, HybridLayer, HybridStack, HybridToldLayer


# What a forward pass hands on to the layers, and what the decorators of transformers read.
_ARGUMENTS_OF_TRANSFORMERS = {*TransformersKwargs.__annotations__, "is_causal", "return_dict", "use_cache"}


@auto_docstring
class HybridPreTrainedModel(PreTrainedModel):
    config_class = HybridConfig
    config: HybridConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridEmbeddings", "HybridLayer", "HybridToldLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # `num_items_in_batch` is not used: let Trainer divide by the accumulation steps.
    accepts_loss_kwargs = False
    # Whether a checkpoint of this class comes with the code of pre-training, and so may promise it.
    _carries_pretraining = False
    # Those of the stacks, not of a pooling that has a layer of its own.
    _can_record_outputs = {
        "hidden_states": OutputRecorder(HybridLayer, layer_name="layers"),
        "attentions": OutputRecorder(HybridAttention, index=1, layer_name="layers"),
    }
    # One checkpoint serves every class: each takes its own parts and leaves the others.
    _keys_to_ignore_on_load_unexpected = [
        r"^(encoder\.)?(decoder|condition)\.",
        r"^(depth_head|latent|feature_density|projector|patch_projector|momentum_encoder|objective|classifier|strangeness)\.",
    ]

    def add_decoder(self) -> None:
        """Give the model the parts that make decoder states of encoder states."""
        config = self.config
        layer = HybridToldLayer if config.has_condition else HybridLayer
        self.decoder = HybridStack(config, config.num_decoder_layers, config.num_encoder_layers, layer)
        self.condition = FeatureCondition(config) if config.has_condition else None

    def decode(
        self,
        encoder_states: torch.Tensor,
        past_key_values: Cache | None = None,
        condition: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Encoder states (B, T, D) -> decoder states (B, T, D). The state at position t knows the view tag and the
        first t patches, and predicts the patch after them. All of them know the `condition` (B, D) that [`told`] gives.
        """
        kwargs = known_arguments(kwargs)
        if self.condition is not None:
            kwargs["condition"] = self.condition.nothing if condition is None else condition[:, None]
        # The encoder layers are the first of the cache, so it already counts the positions that come in now.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=encoder_states,
            attention_mask=None,
            past_key_values=past_key_values,
            layer_idx=self.config.num_encoder_layers,
        )
        return self.decoder(encoder_states, mask, past_key_values=past_key_values, is_causal=True, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # Scaled by the fan-in, as torch does: transformers' fixed 0.02 starves narrow models.
            init.normal_(module.weight, std=(3 * module.in_features) ** -0.5)
        if hasattr(module, "start_weights"):
            module.start_weights()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        # As in transformers, but features of a decoder that the checkpoint lacks would be those of random weights.
        loaded: tuple = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if model.base_model.features_from != "encoder" and lacks_decoder(info["missing_keys"]):
            raise ValueError(
                f"features_from={model.config.features_from!r} reads the decoder, which this checkpoint lacks; load "
                "one that was trained for the likelihood, or set features_from='encoder'."
            )
        lacks_modulation, lacks_condition = (
            any(part in key for key in info["missing_keys"]) for part in (".modulation.", "condition.")
        )
        if lacks_modulation and not lacks_condition:
            raise ValueError(
                "The decoder of this checkpoint was told its condition by a vector that is added to its states, as up "
                "to commit b22e075; use the code of that commit, or train it anew."
            )
        return (model, info) if output_loading_info else model

    def resize_token_embeddings(self, *args, **kwargs):
        """
        Raises:
            ValueError: always.
        """
        raise ValueError(
            "An embedding stands for a level of a pixel, and another number of levels would change the head as well; "
            "choose num_levels in the configuration of a new model."
        )

    def feature_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`pooler_output` as a sequence of one token, (B, 1, P): for sentence-transformers, which pools tokens."""
        return self.base_model(pixel_values).pooler_output[:, None]

    def save_pretrained(self, *args, **kwargs):
        # A configuration may come from the folder of a detector, or name files of an earlier version.
        self.config.auto_map |= AUTO_MAP
        if not self._carries_pretraining:
            for name in ("AutoModelForPreTraining", "Objective"):
                self.config.auto_map.pop(name, None)
        super().save_pretrained(*args, **kwargs)


@dataclass
class EncoderRecorder(OutputRecorder):
    """Which of its layers the encoder has, for `output_hidden_states=[-1]`; transformers before 5.23 do not ask."""

    num_hidden_layers_key: str = "num_encoder_layers"


@auto_docstring(custom_intro="The encoder: images to features. Loads no decoder, projector or objective.")
class HybridModel(HybridPreTrainedModel):
    _can_record_outputs = {
        **HybridPreTrainedModel._can_record_outputs,
        "hidden_states": EncoderRecorder(HybridLayer, layer_name="layers"),
    }

    def __init__(self, config: HybridConfig, with_decoder: bool = True):
        r"""
        with_decoder (`bool`, *optional*, defaults to `True`):
            Whether to have a decoder where `features_from` reads one; false in a model that has one itself.
        """
        super().__init__(config)
        self.features_from = config.features_from if with_decoder else "encoder"
        self.embeddings = HybridEmbeddings(config)
        self.stack = HybridStack(config, config.num_encoder_layers, first_layer_idx=0)
        self.pooler = POOLINGS[config.pooling](config)
        if self.features_from != "encoder":
            self.add_decoder()
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.code_embedding

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.code_embedding = value

    def encode(
        self,
        codes: torch.Tensor | None,
        view_kinds: torch.Tensor,
        is_causal: bool,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        States of the view tag and of the patches: codes (B, S', K), view_kinds (B,) -> (B, S' + 1, D).

        With a non-empty cache the sequence is continued: `codes` are the patches after those in the cache, the tag is
        not repeated, and the result is (B, S', D).
        """
        kwargs = known_arguments(kwargs)
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        tags, first_patch = (view_kinds, 0) if num_past == 0 else (None, num_past - 1)
        hidden_states = self.embeddings(codes, tags, first_patch)
        create_mask = create_causal_mask if is_causal else create_bidirectional_mask
        mask = create_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=None,
            past_key_values=past_key_values,
        )
        return self.stack(hidden_states, mask, past_key_values=past_key_values, is_causal=is_causal, **kwargs)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        codes (`torch.LongTensor` of shape `(batch_size, num_patches, num_codes)`, *optional*):
            Codes of the images, instead of `pixel_values`.
        view_kinds (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Kind of each view; 0, the clean image, if unset.

        Returns:
            `last_hidden_state` (B, S, D), the encoder's states of the patches, and `pooler_output` (B, P); (B, 2 * P)
            where `features_from` is "joined".
        """
        codes, view_kinds = prepare_codes(self.config, pixel_values, codes, view_kinds)
        states = self.encode(codes, view_kinds, is_causal=self.config.features_are_causal, **kwargs)
        pooled = [] if self.features_from == "decoder" else [self.pooler(states[:, 1:])]
        if self.features_from != "encoder":
            causal = states if self.config.features_are_causal else self.encode(codes, view_kinds, True, **kwargs)
            pooled.append(average_patches(self.decode(causal, **kwargs), self.config))
        return BaseModelOutputWithPooling(last_hidden_state=states[:, 1:], pooler_output=torch.cat(pooled, dim=-1))


def average_patches(decoder_states: torch.Tensor, config: HybridConfig) -> torch.Tensor:
    """
    Informative embeddings (cMIM, Livne 2025, arXiv 2502.19642): decoder states (B, S + 1, D) of whole images -> (B, P).

    The mean over the patches, or over those of each region where `pooler_output` has regions, without the state before
    any patch, which is equal for all images.
    """
    average = (RegionalPooling if config.has_regions else MeanPooling)(config)
    return average(decoder_states[:, 1:])


def lacks_decoder(missing_keys: Iterable[str]) -> bool:
    """Whether a checkpoint has no decoder; what a condition adds to one starts as nothing, and may be missing."""
    return any(("decoder." in key or "depth_head." in key) and ".modulation." not in key for key in missing_keys)


def known_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    Further arguments of a forward pass that are set, all of them of transformers.

    Raises:
        TypeError: another one, which nothing would read.
    """
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    for key in kwargs.keys() - _ARGUMENTS_OF_TRANSFORMERS:
        reason = (
            "every image has all its patches, so there is nothing to mask"
            if key == "attention_mask"
            else ("pixel_values, codes and view_kinds are those of every model; see the docstring of its forward()")
        )
        raise TypeError(f"Unexpected argument {key!r}: {reason}.")
    return kwargs


def prepare_codes(
    config: HybridConfig,
    pixel_values: torch.Tensor | None,
    codes: torch.Tensor | None,
    view_kinds: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (B, S, K) and view_kinds (B,) of a batch of whole images given as `pixel_values` or as `codes`."""
    if (pixel_values is None) == (codes is None):
        raise ValueError("Pass either pixel_values or codes.")
    if codes is None:
        codes = pixels_to_codes(pixel_values, config)
    else:
        check_codes(codes, config)
        if codes.shape[0] == 0:
            raise ValueError(f"codes has shape {tuple(codes.shape)}: no image; pass one or more.")
        if codes.shape[1] != config.num_patches:
            raise ValueError(f"codes has {codes.shape[1]} patches, a whole image has {config.num_patches}.")
    return codes, prepare_view_kinds(config, view_kinds, codes.shape[0], codes.device)


def prepare_view_kinds(
    config: HybridConfig, view_kinds: torch.Tensor | None, num: int, device: torch.device
) -> torch.Tensor:
    """The tags of `num` sequences or views, (num,): all 0, clean, if unset."""
    if view_kinds is None:
        return torch.zeros(num, dtype=torch.long, device=device)
    if view_kinds.shape != (num,):
        raise ValueError(f"view_kinds has shape {tuple(view_kinds.shape)}, expected ({num},).")
    check(
        ((view_kinds >= 0) & (view_kinds < config.num_view_kinds)).all(),
        f"view_kinds holds a value outside 0..{config.num_view_kinds - 1} (num_view_kinds={config.num_view_kinds}).",
    )
    return view_kinds.to(device)


# Images whose states are held at a time where nothing but likelihoods is asked for.
SCORED_AT_A_TIME = 256

# By `code_distribution`.
HEADS = {"softmax": DepthHead, "logistic_mixture": LogisticMixtureHead}


@dataclass
@auto_docstring
class HybridImageGenerationOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean negative log-likelihood of a code, in nats.
        logits (`torch.FloatTensor` of shape `(batch_size, num_patches, num_codes, num_levels)`):
            Those at patch s, code k predict `codes[:, s, k]` from all codes before it; they are not shifted.
        nll (`torch.FloatTensor` of shape `(batch_size,)`):
            Negative log-likelihood of each image, in nats.
        nll_map (`torch.FloatTensor` of shape `(batch_size, num_patches)`):
            The part of each patch in it, in raster order: where an image surprises.
        hidden_states (`tuple[torch.FloatTensor]`):
            With `output_hidden_states=True`: the input of the first layer, then the output (batch_size, positions,
            hidden_size) of each layer of the encoder, and of each of the decoder, which sees all but the last position.
        attentions (`tuple[torch.FloatTensor]`):
            With `output_attentions=True`: the weights (batch_size, num_attention_heads, positions, positions) of the
            same.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    nll: torch.FloatTensor | None = None
    nll_map: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="Encoder, decoder and depth head: exact likelihoods, samples and completions of images.")
class HybridForImageGeneration(HybridPreTrainedModel, HybridGenerationMixin):
    # Whether the checkpoint came without what makes the likelihood, and nothing has been trained since.
    is_untrained = False

    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.encoder = HybridModel(config, with_decoder=False)
        self.add_decoder()
        self.depth_head = HEADS[config.code_distribution](config)
        self.latent = GaussianLatent(config) if config.has_latent else None
        self.feature_density = None
        if config.num_density_components > 0:
            self.feature_density = FeatureDensity(config.condition_size, config.num_density_components)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        # As in transformers; what the checkpoint lacks is remembered until the model is trained.
        loaded: tuple = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        model.is_untrained = lacks_decoder(info["missing_keys"])
        return (model, info) if output_loading_info else model

    def train(self, mode: bool = True):
        self.is_untrained &= not mode
        return super().train(mode)

    def require_decoder(self) -> None:
        """Raise `ValueError` if the model has not learnt to give images probabilities."""
        if self.is_untrained:
            raise ValueError(
                "This checkpoint has no decoder or depth head, so scores and samples would be those of random weights. "
                "Load one that was trained for the likelihood, or train this one first."
            )
        if not self.config.has_decoder:
            raise ValueError(
                f"This model has no likelihood: generative_weight={self.config.generative_weight}, encoder_attention="
                f"{self.config.encoder_attention!r}. To score and sample, train with generative_weight above 0 and "
                "encoder_attention='causal' or 'two_pass'."
            )

    def require_likelihood(self) -> None:
        """Raise `ValueError` if the model has not learnt p(image)."""
        self.require_decoder()
        if self.config.has_latent:
            raise ValueError(
                "This model has p(image | latent) alone (decoder_condition='latent'), and no exact p(image): pass "
                "features=model.posterior(pixel_values).mean to log_likelihood(), or estimate p(image) by "
                "estimated_log_likelihood()."
            )

    def require_condition(self) -> None:
        """Raise `ValueError` if the decoder can be told no features."""
        if self.condition is None:
            raise ValueError(
                "The decoder cannot be told features, as this model has no condition (decoder_condition='none'); train "
                "one with decoder_condition='features', or leave them out."
            )

    @property
    def _told_kind(self) -> str:
        return "the latent" if self.config.has_latent else "pooler_output of the encoder"

    def told(self, features: Features | None, num_images: int) -> torch.Tensor | None:
        """
        What [`decode`] is told of `num_images` images: their features (B, P), such as `pooler_output`, -> (B, D); or
        `None`, nothing. Where only some images are given any, features are a list with a row (P,) or `None` for each.

        Raises:
            ValueError: features for a model that cannot be told any, of another shape, or not finite.
        """
        if features is None:
            return None
        self.require_condition()
        width, is_given = self.config.condition_size, None
        if not isinstance(features, torch.Tensor):
            rows = [None if row is None else torch.as_tensor(row, device=self.device) for row in features]
            for i, row in enumerate(rows):
                if row is not None and row.shape != (width,):
                    raise ValueError(
                        f"features[{i}] has shape {tuple(row.shape)}, expected ({width},): {self._told_kind} of one "
                        "image, or None where nothing is given."
                    )
            is_given = torch.tensor([row is not None for row in rows], device=self.device)[:, None]
            if not is_given.all():
                self.require_likelihood()
            blank = torch.zeros(width, device=self.device)
            features = torch.stack([blank if row is None else row for row in rows]) if rows else is_given
        expected = (num_images, width)
        if features.shape != expected:
            raise ValueError(
                f"features has shape {tuple(features.shape)}, expected {expected}: one row, {self._told_kind}, for "
                "each image."
            )
        check(features.isfinite().all(), "features holds a value that is infinite or not a number.")
        condition = self.condition(features.to(self.device))
        if is_given is None or is_given.all():
            return condition
        return torch.where(is_given, condition, self.condition.nothing)

    def decoder_states(
        self,
        codes: torch.Tensor,
        view_kinds: torch.Tensor,
        past_key_values: Cache | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Codes (B, S', K) and view_kinds (B,) -> decoder states of the positions that are not in the cache yet.

        A `condition` (N * B, D) asks for those of each image under N of them, (N * B, T, D), first all under the first.
        """
        states = self.encoder.encode(codes, view_kinds, is_causal=True, past_key_values=past_key_values)
        if condition is not None:
            states = states.repeat(len(condition) // len(states), 1, 1)
        return self.decode(states, past_key_values, condition)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
        features: Features | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> HybridImageGenerationOutput:
        r"""
        codes (`torch.LongTensor` of shape `(batch_size, num_patches, num_codes)`, *optional*):
            Codes of the images, instead of `pixel_values`.
        view_kinds (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Kind of each view; 0, the clean image, if unset.
        features (`torch.FloatTensor` of shape `(batch_size, pooled_size)`, *optional*):
            What the decoder is told of each image, `pooler_output` of the encoder; nothing if unset. With it every
            probability is one given the features. A list with a row or `None` for each image gives some images none.
        return_loss (`bool`, *optional*, defaults to `True`):
            Whether to compute `loss`, `nll` and `nll_map`, which need no labels.
        """
        codes, view_kinds, condition = self._prepare(pixel_values, codes, view_kinds, features)
        logits = self.depth_head(self._predicting_states(codes, view_kinds, condition, **kwargs), codes)
        if not return_loss:
            return HybridImageGenerationOutput(logits=logits)
        nll = code_nll(logits, codes)
        return HybridImageGenerationOutput(
            loss=nll.mean(), logits=logits, nll=nll.sum(dim=(1, 2)), nll_map=nll.sum(dim=2)
        )

    def _predicting_states(
        self, codes: torch.Tensor, view_kinds: torch.Tensor, condition: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Codes (B, S, K) and view_kinds (B,) of whole images -> decoder states (B, S, D); each predicts a patch."""
        states = self.encoder.encode(codes, view_kinds, is_causal=True, **kwargs)
        return self.decode(states[:, :-1], condition=condition, **kwargs)

    def measure(
        self, codes: torch.Tensor, view_kinds: torch.Tensor, with_likelihood: bool = True, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        What features are made of, and the likelihood, in one pass of the encoder where both come from the same states.

        Returns:
            encoder states of the patches (B, S, D), and negative log-likelihoods (B,) in nats: `None` where they are
            not asked for, and where the model has none.
        """
        config = self.config
        states = self.encoder.encode(codes, view_kinds, is_causal=config.features_are_causal, **kwargs)
        if not (with_likelihood and config.has_likelihood):
            return states[:, 1:], None
        self.require_likelihood()
        causal_states = states
        if not config.features_are_causal:
            causal_states = self.encoder.encode(codes, view_kinds, is_causal=True, **kwargs)
        nll = self.depth_head.nll(self.decode(causal_states[:, :-1], **kwargs), codes)
        return states[:, 1:], nll.sum(dim=(1, 2))

    def log_likelihood(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
        features: Features | None = None,
    ) -> torch.Tensor:
        """
        Exact log p(image) in nats, (B,), or log p(image | features) for features (B, P): over all images of this size
        and number of levels, exp of it sums to 1, whatever the features. A list with a row (P,) or `None` for each
        image gives some images none.

        Raises:
            ValueError: images that do not fit, a model without a likelihood, or features that [`told`] refuses.
        """
        return -self._nll(*self._prepare(pixel_values, codes, view_kinds, features), dim=(1, 2))

    def nll_map(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
        features: Features | None = None,
    ) -> torch.Tensor:
        """
        The part of each patch, in raster order, in -[`log_likelihood`], (B, S), in nats: where an image surprises.
        Arguments and errors as there.
        """
        return self._nll(*self._prepare(pixel_values, codes, view_kinds, features), dim=2)

    def bits_per_dim(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
        features: Features | None = None,
    ) -> torch.Tensor:
        """
        -log2 p(image) / (C * H * W), (B,), or the same of p(image | features). Arguments and errors as in
        [`log_likelihood`].
        """
        self.require_likelihood()
        return bits_per_dim(-self.log_likelihood(pixel_values, codes, view_kinds, features), self.config)

    def posterior(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
    ) -> torch.distributions.Independent:
        """
        q(latent | image), a Gaussian with `mean` (B, Z) and `sample()`, of a model with `decoder_condition="latent"`.

        Raises:
            ValueError: images that do not fit, or a model without latents.
        """
        if self.latent is None:
            raise ValueError(
                "This model has no latents; train one with decoder_condition='latent', or use pooler_output of the "
                "encoder."
            )
        codes, view_kinds = prepare_codes(self.config, pixel_values, codes, view_kinds)
        return self.latent(self.encoder(codes=codes, view_kinds=view_kinds).pooler_output)

    @torch.no_grad()
    def estimated_log_likelihood(
        self,
        pixel_values: torch.Tensor | None = None,
        num_samples: int = 32,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        An estimate of log p(image) of a model with latents, in nats, (B,): the logarithm of the mean of
        p(image | z) p(z) / q(z | image) over `num_samples` z of q(z | image).

        That mean is right on average, its logarithm is too small on average: a lower bound in expectation, which comes
        nearer with every sample (Burda et al. 2016, arXiv 1509.00519).

        Raises:
            ValueError: as [`posterior`], or fewer than one sample.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        posterior = self.posterior(pixel_values, codes, view_kinds)
        log_weights = []
        for _ in range(num_samples):
            latents = posterior.sample()
            given = self.log_likelihood(pixel_values, codes, view_kinds, features=latents)
            log_weights.append(given + log_prior(latents) - posterior.log_prob(latents))
        return torch.stack(log_weights).logsumexp(dim=0) - math.log(num_samples)

    def information_map(
        self,
        pixel_values: torch.Tensor | None = None,
        features: Features | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The part of each patch, in raster order, in [`information`], (B, S): how many bits fewer the patch costs, given
        the patches before it, once the features (B, P) are known. What an earlier patch has told already counts there,
        not here.
        """
        if features is None:
            raise ValueError("Pass features, whose information about the images is asked for.")
        self.require_likelihood()
        without, given = (self.nll_map(pixel_values, codes, view_kinds, each) for each in (None, features))
        return (without - given) / math.log(2)

    def information(
        self,
        pixel_values: torch.Tensor | None = None,
        features: Features | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        log2 p(image | features) - log2 p(image), (B,): the bits of each image that its features (B, P) save this model.

        Both terms are exact for the model, but the model is not the data: the mean over images is an estimate of the
        mutual information of image and features, and bounds it from neither side. (With the entropy of the images in
        place of -log2 p(image) it would be a lower bound; where that is not known, -log2 p(image) is too large by as
        much as the model is wrong.) Of one image it may be negative, as it is likely to be for features of another.

        Arguments and errors as in [`log_likelihood`].
        """
        return self.information_map(pixel_values, features, codes, view_kinds).sum(dim=1)

    def _prepare(
        self,
        pixel_values: torch.Tensor | None,
        codes: torch.Tensor | None,
        view_kinds: torch.Tensor | None,
        features: Features | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Codes (B, S, K), view_kinds (B,) and condition (B, D) of what a user wants scored."""
        if features is None:
            self.require_likelihood()
        self.require_decoder()
        codes, view_kinds = prepare_codes(self.config, pixel_values, codes, view_kinds)
        return codes, view_kinds, self.told(features, codes.shape[0])

    def _nll(
        self, codes: torch.Tensor, view_kinds: torch.Tensor, condition: torch.Tensor | None, dim: int | tuple[int, ...]
    ) -> torch.Tensor:
        """Negative log-likelihoods of codes in nats, (B, S, K) summed over `dim`, some images at a time."""
        rows = [codes, view_kinds] if condition is None else [codes, view_kinds, condition]
        parts = in_chunks(SCORED_AT_A_TIME, *rows)
        return torch.cat([self.depth_head.nll(self._predicting_states(*part), part[0]).sum(dim=dim) for part in parts])

    def decoder_features(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The states of the decoder under teacher forcing as features, (B, P) ([`average_patches`]), which a model trained
        for the likelihood has without further training. The decoder is told nothing, or the mean of the latent where it
        has one. `features_from` of the configuration gives them as `pooler_output` of the other classes.

        Raises:
            ValueError: images that do not fit, or a model without a likelihood.
        """
        codes, view_kinds = prepare_codes(self.config, pixel_values, codes, view_kinds)
        latents = self.posterior(codes=codes, view_kinds=view_kinds).mean if self.config.has_latent else None
        codes, view_kinds, condition = self._prepare(None, codes, view_kinds, latents)
        return average_patches(self.decoder_states(codes, view_kinds, condition=condition), self.config)

    def features_to_tell(self, pixel_values: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """What the decoder can be told of images: `pooler_output` (B, P), or a sample of their latents (B, Z)."""
        if not self.config.has_latent:
            return self.encoder(pixel_values).pooler_output
        posterior = self.posterior(pixel_values)
        mean = posterior.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + posterior.stddev * noise

    @torch.no_grad()
    def fit_feature_density(
        self, images: torch.Tensor | Iterable[torch.Tensor], num_components: int = 10, batch_size: int = 256
    ) -> "HybridForImageGeneration":
        """
        Learn which features images of the data have, so that [`sample_features`] can draw some; of a model with
        latents, which latents. It changes no weight, and is saved with the model.

        Args:
            images: pixel_values (N, C, H, W) in [-1, 1], or batches of them.
            num_components: Gaussians, of [`FeatureDensity`].
            batch_size: images at a time, where they do not come in batches.

        Returns:
            the model itself, in evaluation mode.

        Raises:
            ValueError: fewer than two images for each Gaussian, images that do not fit, or a model that has no use for
                features.
        """
        self.require_condition()
        if num_components < 1:
            raise ValueError(f"num_components={num_components} must be at least 1.")
        self.eval()
        batches = images.split(batch_size) if isinstance(images, torch.Tensor) else images
        rows = [self.features_to_tell(batch.to(self.device)).float().cpu() for batch in batches if len(batch)]
        features = torch.cat(rows) if rows else torch.empty(0, self.config.condition_size)
        density = FeatureDensity(self.config.condition_size, num_components).fit(features)
        self.feature_density, self.config.num_density_components = density.to(self.device), num_components
        return self

    def sample_features(self, num_images: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """
        Features (N, P) such as images of the data have, for `generate(features=...)`: the first of two stages. Latents
        come from their prior until `fit_feature_density` has been called.

        Args:
            generator: source of randomness on the model's device; torch's default one if unset.

        Raises:
            ValueError: `fit_feature_density` has never been called.
        """
        if self.feature_density is None:
            if self.config.has_latent:
                return torch.randn(num_images, self.config.projection_dim, generator=generator, device=self.device)
            raise ValueError(NOT_FITTED)
        return self.feature_density.sample(num_images, generator)

    def codes_to_pixels(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, S, K), for instance those of `generate`, -> pixel_values (B, C, H, W) in [-1, 1]."""
        return codes_to_pixels(codes, self.config)


@auto_docstring(custom_intro="A linear head on the pooled feature, for probing or for full fine-tuning.")
class HybridForImageClassification(HybridPreTrainedModel):
    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.encoder = HybridModel(config)
        self.classifier = nn.Linear(config.feature_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        # As in transformers; the decoder, if features are read from it, is a part of the encoder here.
        kwargs["key_mapping"] = {r"^(decoder|condition)\.": r"encoder.\1."} | (kwargs.get("key_mapping") or {})
        return super().from_pretrained(*args, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        r"""
        labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
            What `config.problem_type` asks for: the class of each image, in `0..num_labels - 1`, where -100 leaves an
            image out of the loss (`"single_label_classification"`); 0 or 1 for each label
            (`"multi_label_classification"`); or values (`"regression"`). Where it is unset, the first labels settle it,
            as in every model of transformers: one label is a regression, integers are classes, floats are many labels.
        """
        outputs = self.encoder(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(self._targets(labels, len(logits)), at_least_float32(logits), self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _targets(self, labels: torch.Tensor, num_images: int) -> torch.Tensor:
        """
        Labels as the loss of `config.problem_type` takes them.

        Raises:
            ValueError: labels of another shape, which the loss would spread over all images.
        """
        problem_type, num_labels = self.config.problem_type, self.config.num_labels
        if problem_type is None and num_labels > 1 and not labels.is_floating_point():
            problem_type = "single_label_classification"
        are_classes = problem_type == "single_label_classification"
        expected = (num_images,) if are_classes else (num_images, num_labels)
        if labels.shape != expected and not (num_labels == 1 and labels.shape == (num_images,)):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, expected {expected} for problem_type="
                f"{self.config.problem_type!r}, num_labels={num_labels} and labels of {labels.dtype}; set "
                "config.problem_type if another is meant."
            )
        return labels.long() if are_classes else at_least_float32(labels)


__all__ = [
    "HybridForImageClassification",
    "HybridForImageGeneration",
    "HybridModel",
    "HybridPreTrainedModel",
]
