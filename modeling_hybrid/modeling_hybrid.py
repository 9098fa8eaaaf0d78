"""
The models of the package.

    image -> codes -> HybridModel (encoder) -> pooled features -> projector -> contrastive objective
                          '-> decoder -> depth head -> exact likelihood -> samples

A design built on the idea of "Hybrid Generative-Contrastive Representation Learning" (Kim, Kim and Lee, 2021, arXiv
2106.06162), of which only the abstract was available to us; not a reproduction.

Shape letters: B batch, V views, C channels, H height, W width, S patches, K codes of a patch, L levels, D hidden size,
P width of the pooled feature, T positions of a sequence (the view tag, then patches).
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import ModelOutput, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_hybrid import AUTO_MAP, HybridConfig, unknown_key_message
from .depth_head import DepthHead
from .generation_hybrid import HybridGenerationMixin
from .likelihood import bits_per_dim, code_nll
from .momentum_encoder import MomentumEncoder
from .out_of_distribution import StrangenessScore
from .patch_codes import HybridEmbeddings, check, check_codes, codes_to_pixels, pixels_to_codes
from .pooling import POOLINGS, RegionalPooling
from .projector import Projector
from .transformer import HybridAttention, HybridLayer, HybridStack


@auto_docstring
class HybridPreTrainedModel(PreTrainedModel):
    config_class = HybridConfig
    config: HybridConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridEmbeddings", "HybridLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Those of the stacks, not of a pooling that has a layer of its own.
    _can_record_outputs = {
        "hidden_states": OutputRecorder(HybridLayer, layer_name="layers"),
        "attentions": OutputRecorder(HybridAttention, index=1, layer_name="layers"),
    }
    # One checkpoint serves every class: each takes its own parts and leaves the others.
    _keys_to_ignore_on_load_unexpected = [
        r"^(decoder|depth_head|projector|patch_projector|momentum_encoder|objective|classifier|strangeness)\."
    ]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # Scaled by the fan-in, as torch does: transformers' fixed 0.02 starves narrow models.
            init.normal_(module.weight, std=(3 * module.in_features) ** -0.5)
        if hasattr(module, "start_weights"):
            module.start_weights()

    def save_pretrained(self, *args, **kwargs):
        # A configuration from the folder of a detector names the detector; saving another class must not.
        self.config.auto_map["AutoModel"] = AUTO_MAP["AutoModel"]
        super().save_pretrained(*args, **kwargs)


@auto_docstring(custom_intro="The encoder: images to features. Loads no decoder, projector or objective.")
class HybridModel(HybridPreTrainedModel):
    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.embeddings = HybridEmbeddings(config)
        self.stack = HybridStack(config, config.num_encoder_layers, first_layer_idx=0)
        self.pooler = POOLINGS[config.pooling](config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.code_embedding

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
            `last_hidden_state` (B, S, D), the states of the patches, and `pooler_output` (B, P).
        """
        codes, view_kinds = prepare_codes(self.config, pixel_values, codes, view_kinds)
        states = self.encode(codes, view_kinds, is_causal=self.config.encoder_attention == "causal", **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=states[:, 1:], pooler_output=self.pooler(states[:, 1:]))


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
        if codes.shape[1] != config.num_patches:
            raise ValueError(f"codes has {codes.shape[1]} patches, a whole image has {config.num_patches}.")
    return codes, prepare_view_kinds(config, view_kinds, len(codes), codes.device)


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
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    nll: torch.FloatTensor | None = None


@auto_docstring(custom_intro="Encoder, decoder and depth head: exact likelihoods, samples and completions of images.")
class HybridForImageGeneration(HybridPreTrainedModel, HybridGenerationMixin):
    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.encoder = HybridModel(config)
        self.decoder = HybridStack(config, config.num_decoder_layers, first_layer_idx=config.num_encoder_layers)
        self.depth_head = DepthHead(config)
        self.post_init()

    def require_likelihood(self) -> None:
        """Raise `ValueError` if the encoder is bidirectional."""
        if self.config.encoder_attention == "bidirectional":
            raise ValueError(
                "encoder_attention='bidirectional' has no likelihood: every state has seen the whole image. Train with "
                "encoder_attention='causal' or 'two_pass' to score and sample."
            )

    def decode(self, encoder_states: torch.Tensor, past_key_values: Cache | None = None, **kwargs) -> torch.Tensor:
        """
        Encoder states (B, T, D) -> decoder states (B, T, D). The state at position t knows the view tag and the
        first t patches, and predicts the patch after them.
        """
        # The encoder layers are the first of the cache, so it already counts the positions that come in now.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=encoder_states,
            attention_mask=None,
            past_key_values=past_key_values,
            layer_idx=self.config.num_encoder_layers,
        )
        return self.decoder(encoder_states, mask, past_key_values=past_key_values, is_causal=True, **kwargs)

    def decoder_states(
        self, codes: torch.Tensor, view_kinds: torch.Tensor, past_key_values: Cache | None = None
    ) -> torch.Tensor:
        """Codes (B, S', K) and view_kinds (B,) -> decoder states of the positions that are not in the cache yet."""
        states = self.encoder.encode(codes, view_kinds, is_causal=True, past_key_values=past_key_values)
        return self.decode(states, past_key_values)

    def depth_logits(self, decoder_states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Decoder states (B, S, D) and codes (B, S, K) -> logits (B, S, K, L)."""
        return self.depth_head(decoder_states.flatten(0, 1), codes.flatten(0, 1)).unflatten(0, codes.shape[:2])

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
        **kwargs,
    ) -> HybridImageGenerationOutput:
        r"""
        codes (`torch.LongTensor` of shape `(batch_size, num_patches, num_codes)`, *optional*):
            Codes of the images, instead of `pixel_values`.
        view_kinds (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Kind of each view; 0, the clean image, if unset.
        """
        logits, codes = self._score(pixel_values, codes, view_kinds, **kwargs)
        nll = code_nll(logits, codes)
        return HybridImageGenerationOutput(loss=nll.mean(), logits=logits, nll=nll.sum(dim=(1, 2)))

    def _score(self, pixel_values, codes, view_kinds, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, S, K, L) and codes (B, S, K) of whole images."""
        self.require_likelihood()
        codes, view_kinds = prepare_codes(self.config, pixel_values, codes, view_kinds)
        states = self.encoder.encode(codes, view_kinds, is_causal=True, **kwargs)
        return self.depth_logits(self.decode(states[:, :-1], **kwargs), codes), codes

    def log_likelihood(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Exact log p(image) in nats, (B,): over all images of this size and number of levels, exp of it sums to 1.

        Raises:
            ValueError: images that do not fit, or an encoder without a likelihood.
        """
        return -code_nll(*self._score(pixel_values, codes, view_kinds)).sum(dim=(1, 2))

    def bits_per_dim(
        self,
        pixel_values: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        view_kinds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """-log2 p(image) / (C * H * W), (B,). Arguments and errors as in [`log_likelihood`]."""
        return bits_per_dim(-self.log_likelihood(pixel_values, codes, view_kinds), self.config)

    def codes_to_pixels(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, S, K), for instance those of `generate`, -> pixel_values (B, C, H, W) in [-1, 1]."""
        return codes_to_pixels(codes, self.config)


@dataclass
@auto_docstring
class HybridForPreTrainingOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            `generative_weight * generative_loss + contrastive_weight * contrastive_loss`.
        contrastive_loss (`torch.FloatTensor` of shape `()`):
            Mean of the objective over its anchors; `None` where switched off, or where there is one view only.
        generative_loss (`torch.FloatTensor` of shape `()`):
            Mean negative log-likelihood of a code over all views, in nats; `None` where switched off.
        nll (`torch.FloatTensor` of shape `(num_views, batch_size)`):
            Negative log-likelihood of each view, in nats, without gradient.
        projections (`torch.FloatTensor` of shape `(num_views, batch_size, projection_dim)`):
            Rows of length one; `None` where the contrastive loss is switched off.
        pooler_output (`torch.FloatTensor` of shape `(num_views, batch_size, pooled_size)`):
            Features of each view; `None` where the contrastive loss is switched off.
        telemetry (`dict[str, torch.Tensor]`):
            What the objective reports beside its loss, without gradient.
    """

    loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    generative_loss: torch.FloatTensor | None = None
    nll: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    telemetry: dict[str, torch.Tensor] | None = None


@dataclass
class RepresentedViews:
    """
    What the encoder makes of a batch of views, before any loss. Rows are views of images: first all of the first view.

    Args:
        codes: (V * B, S, K).
        view_kinds: (V * B,) tag of each row.
        num_views: V.
        causal_states: (V * B, S + 1, D), or `None` where the encoder is bidirectional only.
        decoder_states: (V * B, S, D), or `None` where no objective needs them.
        pooler_output: (V, B, P), or `None` where the contrastive loss is switched off.
        objective_batch: what the objective needs of it.
    """

    codes: torch.Tensor
    view_kinds: torch.Tensor
    num_views: int
    causal_states: torch.Tensor | None = None
    decoder_states: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    objective_batch: Any = None


@auto_docstring(custom_intro="The whole model with both losses. It scores and samples as well.")
class HybridForPreTraining(HybridForImageGeneration):
    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.objective = build_objective(config)
        needs = self.objective.needs
        self.projector = Projector(config, config.pooled_size) if needs & {"projections", "keys"} else None
        needs_patches = needs & {"patch_projections", "patch_keys"}
        self.patch_projector = Projector(config, config.hidden_size) if needs_patches else None
        self.momentum_encoder = None
        if needs & {"keys", "patch_keys"}:
            parts = {name: getattr(self, name) for name in ("encoder", "projector", "patch_projector")}
            self.momentum_encoder = MomentumEncoder(parts)
        self.post_init()

    def update_momentum_encoder(self) -> None:
        """To be called after every optimizer step; does nothing where the objective needs no momentum encoder."""
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.objective.momentum)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        view_kinds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        **kwargs,
    ) -> HybridForPreTrainingOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(num_views, batch_size, num_channels, height, width)`):
            Views of a batch of images, in [-1, 1]; `(batch_size, num_channels, height, width)` is one view.
        view_kinds (`torch.LongTensor` of shape `(num_views,)`, *optional*):
            Kind of each view; all 0, clean, if unset.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Class of each image, for objectives that learn from classes.
        sample_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Index of each image in the training data, for objectives that keep a state per image.
        boxes (`torch.FloatTensor` of shape `(num_views, batch_size, 4)`, *optional*):
            Left, top, right and bottom edge of each view in its image, whose sides are 0 and 1, for objectives that
            match patches.
        """
        views = self.represent(pixel_values, view_kinds, **kwargs)
        output = HybridForPreTrainingOutput(loss=0.0, pooler_output=views.pooler_output)
        if views.objective_batch is not None:
            output.projections = views.objective_batch.projections
            if views.num_views > 1 or self.objective.min_views == 1:
                batch = replace(
                    views.objective_batch, labels=labels, sample_ids=sample_ids, boxes=boxes, **self.keys(views)
                )
                output.contrastive_loss, output.telemetry = self.objective(batch)
                output.loss = output.loss + self.config.contrastive_weight * output.contrastive_loss
        if self.config.generative_weight > 0:
            output.generative_loss, output.nll = self.score(views, **kwargs)
            output.loss = output.loss + self.config.generative_weight * output.generative_loss
        return output

    def represent(
        self, pixel_values: torch.Tensor, view_kinds: torch.Tensor | None = None, **kwargs
    ) -> RepresentedViews:
        """Everything up to the losses. Arguments as in `forward`."""
        config = self.config
        if pixel_values.dim() == 4:
            pixel_values = pixel_values[None]
        if pixel_values.dim() != 5:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (num_views, batch_size, num_channels, "
                "height, width)."
            )
        num_views, batch_size = pixel_values.shape[:2]
        if num_views == 1 and config.generative_weight == 0:
            raise ValueError(
                "pixel_values holds one view, which has no contrastive loss, and generative_weight=0: there is nothing "
                "to learn. Pass two views or more; for features alone, use HybridModel."
            )
        codes = pixels_to_codes(pixel_values.flatten(0, 1), config)
        kinds = prepare_view_kinds(config, view_kinds, num_views, codes.device)
        views = RepresentedViews(codes, kinds.repeat_interleave(batch_size), num_views)
        if config.encoder_attention != "bidirectional":
            views.causal_states = self.encoder.encode(codes, views.view_kinds, is_causal=True, **kwargs)
        if config.contrastive_weight > 0:
            if config.encoder_attention == "causal":
                states = views.causal_states
            else:
                states = self.encoder.encode(codes, views.view_kinds, is_causal=False, **kwargs)
            pooled, projections, patch_projections = project(self, states, num_views)
            views.pooler_output = pooled
            views.objective_batch = self.objective.Batch(
                projections=projections,
                patch_projections=patch_projections,
                view_kinds=kinds if view_kinds is None else view_kinds,
            )
            if "decoder_states" in self.objective.needs:
                views.decoder_states = self.decode(views.causal_states[:, :-1], **kwargs)
                views.objective_batch.decoder_states = views.decoder_states.unflatten(0, (num_views, -1))
        return views

    @torch.no_grad()
    def keys(self, views: RepresentedViews) -> dict[str, torch.Tensor]:
        """The parts of the objective's batch that the momentum encoder makes, by name."""
        if self.momentum_encoder is None:
            return {}
        is_causal = self.config.encoder_attention == "causal"
        states = self.momentum_encoder.encoder.encode(views.codes, views.view_kinds, is_causal=is_causal)
        _, keys, patch_keys = project(self.momentum_encoder, states, views.num_views)
        return {"keys": keys, "patch_keys": patch_keys}

    def score(self, views: RepresentedViews, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean negative log-likelihood of a code, (), and that of each image without gradient, (V, B), in nats."""
        states = views.decoder_states
        if states is None:
            states = self.decode(views.causal_states[:, :-1], **kwargs)
        nll = code_nll(self.depth_logits(states, views.codes), views.codes)
        return nll.mean(), nll.detach().sum(dim=(1, 2)).unflatten(0, (views.num_views, -1))

    def save_pretrained(self, save_directory, is_main_process=True, push_to_hub=False, repo_id=None, **kwargs):
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            custom_object_save(self.objective, save_directory)
            # Only now is the folder complete.
            if push_to_hub:
                self.push_to_hub(repo_id or Path(save_directory).name, **kwargs)


def project(
    parts: HybridForPreTraining | MomentumEncoder, states: torch.Tensor, num_views: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    Encoder states (V * B, S + 1, D) -> pooled features (V, B, P), projections (V, B, projection_dim) and those of the
    single patches (V, B, S, projection_dim); `None` for a projector that is not there.
    """
    pooled = parts.encoder.pooler(states[:, 1:]).unflatten(0, (num_views, -1))
    patches = states[:, 1:].unflatten(0, (num_views, -1))
    projections = parts.projector(pooled) if parts.projector is not None else None
    return pooled, projections, parts.patch_projector(patches) if parts.patch_projector is not None else None


def build_objective(config: HybridConfig) -> nn.Module:
    """
    The contrastive objective that `config.objective` names.

    Without the package, in a checkpoint loaded with `trust_remote_code=True`, its class comes from the checkpoint.

    Raises:
        ValueError: no objective of that name, an argument that it does not take, one that it lacks, or a model without
            the likelihood that it needs.
    """
    arguments = dict(config.objective)
    name = arguments.pop("name")
    try:
        from modeling_hybrid.objectives import OBJECTIVES, objective_class
    except ImportError:
        # The folder that the loader puts this file into is named after the commit that the file came from.
        commit = __name__.split(".")[-2]
        chosen = get_class_from_dynamic_module(config.auto_map["Objective"], config._name_or_path, revision=commit)
    else:
        if name not in OBJECTIVES:
            raise ValueError(unknown_key_message(name, list(OBJECTIVES), "The table of objectives"))
        chosen = objective_class(name)
        config.auto_map["Objective"] = f"{name}.{chosen.__name__}"
    known = inspect.signature(chosen).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(unknown_key_message(key, list(known), f"objective {name!r}"))
    if "projection_dim" in known:
        arguments["projection_dim"] = config.projection_dim
    missing = [key for key, value in known.items() if value.default is value.empty and key not in arguments]
    if missing:
        raise ValueError(
            f"objective={config.objective} lacks {', '.join(missing)}; see the docstring of {chosen.__name__}."
        )
    if "decoder_states" in chosen.needs and config.generative_weight == 0:
        raise ValueError(
            f"objective={config.objective} works on the states of the decoder, which is off (generative_weight=0); "
            "raise generative_weight, or choose another objective."
        )
    return chosen(**arguments)


@dataclass
@auto_docstring
class HybridOutOfDistributionOutput(ModelOutput):
    r"""
    Args:
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            How unexpected the two scores below are among those of the held-out images of `fit`: minus the sum of two
            log tail probabilities, of the likelihood and of the feature given the likelihood, in nats. About 2 (1
            without a likelihood) on average for images of the data; higher is stranger.
        likelihood_scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Negative log-likelihood of each image, in nats; `None` where the model has no likelihood.
        feature_scores (`torch.FloatTensor` of shape `(batch_size,)`):
            Log of the Mahalanobis distance of each feature from the training features.
    """

    scores: torch.FloatTensor | None = None
    likelihood_scores: torch.FloatTensor | None = None
    feature_scores: torch.FloatTensor | None = None


@auto_docstring(
    custom_intro="""
    Tells images of its own kind from others, by their features and likelihoods. It starts from any pre-training
    checkpoint, learns by `fit`, which changes no weight, and is saved with what it has learnt.
    """
)
class HybridForOutOfDistributionDetection(HybridForImageGeneration):
    # A pre-training checkpoint has none: they come with `fit`.
    _keys_to_ignore_on_load_missing = [r"^strangeness\."]

    def __init__(self, config: HybridConfig):
        super().__init__(config)
        # Of the states as the layers leave them: a pooling that learns may learn to overlook what is strange.
        self.average = RegionalPooling(config)
        self.strangeness = StrangenessScore(config.regional_size, with_likelihood=config.generative_weight > 0)
        self.post_init()

    @torch.no_grad()
    def fit(
        self,
        train: torch.Tensor | Iterable[torch.Tensor],
        validation: torch.Tensor | Iterable[torch.Tensor],
        batch_size: int = 256,
    ) -> "HybridForOutOfDistributionDetection":
        """
        Learn what images of the data look like; images of any other kind are not needed.

        Args:
            train: pixel_values (N, C, H, W) in [-1, 1] of images that the model was trained on, or batches of them.
            validation: the same of images that it was not trained on, which give the scores their scale.
            batch_size: images at a time, where they do not come in batches.

        Returns:
            the model itself, in evaluation mode.

        Raises:
            ValueError: fewer than two images, or images that do not fit the model.
        """
        self.eval()

        def measure(images, with_likelihood: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
            batches = images.split(batch_size) if isinstance(images, torch.Tensor) else images
            features, nll = [torch.empty(0, self.config.regional_size)], [torch.empty(0)]
            for batch in batches:
                if len(batch):
                    rows, values = self._measure(batch.to(self.device), with_likelihood)
                    features.append(rows.float().cpu())
                    nll += [values.float().cpu()] if with_likelihood else []
            return torch.cat(features), torch.cat(nll) if with_likelihood else None

        train_features, _ = measure(train, with_likelihood=False)
        self.strangeness.fit(train_features, *measure(validation, with_likelihood=self.config.generative_weight > 0))
        return self

    @can_return_tuple
    @auto_docstring
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> HybridOutOfDistributionOutput:
        measured = self._measure(pixel_values, with_likelihood=self.config.generative_weight > 0, **kwargs)
        scores = self.strangeness(*measured)
        return HybridOutOfDistributionOutput(scores["combined"], scores.get("likelihood"), scores["feature"])

    def _measure(
        self, pixel_values: torch.Tensor, with_likelihood: bool, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Regional means (B, P) and, if asked for, negative log-likelihoods (B,) in nats of clean images."""
        codes, view_kinds = prepare_codes(self.config, pixel_values, None, None)
        is_causal = self.config.encoder_attention == "causal"
        states = self.encoder.encode(codes, view_kinds, is_causal=is_causal, **kwargs)
        features = self.average(states[:, 1:])
        if not with_likelihood:
            return features, None
        if not is_causal:
            states = self.encoder.encode(codes, view_kinds, is_causal=True, **kwargs)
        logits = self.depth_logits(self.decode(states[:, :-1], **kwargs), codes)
        return features, code_nll(logits, codes).sum(dim=(1, 2))


@auto_docstring(custom_intro="A linear head on the pooled feature, for probing or for full fine-tuning.")
class HybridForImageClassification(HybridPreTrainedModel):
    # `num_items_in_batch` is not used: let Trainer divide by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.encoder = HybridModel(config)
        self.classifier = nn.Linear(config.pooled_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Class of each image, in `0..num_labels - 1`; -100 leaves an image out of the loss.
        """
        outputs = self.encoder(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "HybridForImageClassification",
    "HybridForImageGeneration",
    "HybridForOutOfDistributionDetection",
    "HybridForPreTraining",
    "HybridModel",
    "HybridPreTrainedModel",
]
