"""
Pre-training: views of a batch of images -> representations -> both losses.

Shape letters: B batch, V views, S patches, K codes of a patch, D hidden size, P width of the pooled feature.
"""

import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.utils import ModelOutput, auto_docstring
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .condition import log_prior
from .configuration_hybrid import HybridConfig, unknown_key_message
from .modeling_hybrid import HybridForImageGeneration, prepare_view_kinds
from .momentum_encoder import MomentumEncoder
from .patch_codes import pixels_to_codes
from .projector import Projector


@dataclass
@auto_docstring
class HybridForPreTrainingOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            `generative_weight * generative_loss + contrastive_weight * contrastive_loss`.
        contrastive_loss (`torch.FloatTensor` of shape `()`):
            Mean of the objective over its anchors; `None` where switched off, and in evaluation of a single view.
        generative_loss (`torch.FloatTensor` of shape `()`):
            Mean negative log-likelihood of a code over all views, in nats; `None` where switched off. In training that
            of `condition_share` of the images is one given features, where the decoder can be told any. With latents it
            is that given the latent, and the share of a code in half of -log p(latent) - log q(latent | image).
        nll (`torch.FloatTensor` of shape `(num_views, batch_size)`):
            Negative log-likelihood of each view (given its latent, where it has one), in nats, without gradient; of
            `num_generative_views` views, and in training of `generative_share` of the images.
        projections (`torch.FloatTensor` of shape `(num_views, batch_size, projection_dim)`):
            Rows of length one; `None` where the contrastive loss is switched off.
        pooler_output (`torch.FloatTensor` of shape `(num_views, batch_size, pooled_size)`):
            Features of each view; `None` where the contrastive loss is switched off.
        telemetry (`dict[str, torch.Tensor]`):
            What the objective reports beside its loss, without gradient.
        hidden_states (`tuple[torch.FloatTensor]`):
            With `output_hidden_states=True`: the input of the first layer, then the output (rows, positions,
            hidden_size) of each layer of encoder and decoder, in the order in which they run. Rows are images, first
            all of the first view. In training the encoder takes what is scored, where that is a part, before the rest.
        attentions (`tuple[torch.FloatTensor]`):
            With `output_attentions=True`: the weights (rows, num_attention_heads, positions, positions) of the same.
    """

    loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    generative_loss: torch.FloatTensor | None = None
    nll: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    telemetry: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class RepresentedViews:
    """
    What the encoder makes of a batch of views, before any loss. Rows are views of images: first all of the first view.

    Args:
        codes: (V * B, S, K).
        view_kinds: (V * B,) tag of each row.
        num_views: V.
        scored_rows: (V', R), the rows of images that the likelihood is asked of, or `None` where it is switched off; V'
            is at most `num_generative_views`, and in training R is `generative_share` of B.
        scored_states: (V' * R, S + 1, D), causal states of the rows that are scored, or `None` where nothing but the
            likelihood asks for them.
        decoder_states: (V * B, S, D), or `None` where no objective needs them.
        pooler_output: (V, B, P), or `None` where the contrastive loss is switched off.
        latents: (V, B, Z), a sample of each, where the decoder is told any.
        log_densities: (V, B), half of log p(latent) + log q(latent | image), in nats.
        objective_batch: what the objective needs of it.
    """

    codes: torch.Tensor
    view_kinds: torch.Tensor
    num_views: int
    scored_rows: torch.Tensor | None = None
    scored_states: torch.Tensor | None = None
    decoder_states: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    log_densities: torch.Tensor | None = None
    objective_batch: Any = None


@auto_docstring(custom_intro="The whole model with both losses. It scores and samples as well.")
class HybridForPreTraining(HybridForImageGeneration):
    _carries_pretraining = True

    def __init__(self, config: HybridConfig):
        super().__init__(config)
        self.objective = build_objective(config)
        needs = self.objective.needs
        has_projector = needs & {"projections", "keys"} and not config.has_latent
        self.projector = Projector(config, config.pooled_size) if has_projector else None
        needs_patches = needs & {"patch_projections", "patch_keys"}
        self.patch_projector = Projector(config, config.hidden_size) if needs_patches else None
        self.momentum_encoder = None
        if needs & {"keys", "patch_keys"}:
            parts = {name: getattr(self, name) for name in ("encoder", "projector", "patch_projector")}
            self.momentum_encoder = MomentumEncoder(parts)
        elif "patch_embeddings" in needs:
            self.momentum_encoder = MomentumEncoder({"embeddings": self.encoder.embeddings})
        self.post_init()

    def update_momentum_encoder(self) -> None:
        """To be called after every optimizer step; does nothing where the objective needs no momentum encoder."""
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.objective.momentum)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        view_kinds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        teacher: torch.Tensor | None = None,
        return_loss: bool = True,
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
        teacher (`torch.FloatTensor` of shape `(batch_size, teacher_size)`, *optional*):
            Features of each image by another network, for objectives that learn from them.
        return_loss (`bool`, *optional*, defaults to `True`):
            Whether to compute the losses, which need no labels; without, there are features and projections only.
        """
        views = self.represent(pixel_values, view_kinds, **kwargs)
        projections = None if views.objective_batch is None else views.objective_batch.projections
        if not return_loss:
            return HybridForPreTrainingOutput(projections=projections, pooler_output=views.pooler_output)
        output = HybridForPreTrainingOutput(loss=0.0, projections=projections, pooler_output=views.pooler_output)
        # One view can be scored; to train on it, the objective says what it lacks.
        is_contrasted = self.training or views.num_views > 1 or self.objective.min_views == 1
        if views.objective_batch is not None and is_contrasted:
            given = {"labels": labels, "sample_ids": sample_ids, "boxes": boxes, "teacher": teacher}
            batch = replace(views.objective_batch, **given, **self.keys(views))
            output.contrastive_loss, output.telemetry = self.objective(batch)
            output.loss = output.loss + self.config.contrastive_weight * output.contrastive_loss
        if self.config.has_decoder:
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
        if num_views == 1 and not config.has_decoder:
            raise ValueError(
                "pixel_values holds one view, which has no contrastive loss, and generative_weight=0: there is nothing "
                "to learn. Pass two views or more; for features alone, use HybridModel."
            )
        codes = pixels_to_codes(pixel_values.flatten(0, 1), config)
        kinds = prepare_view_kinds(config, view_kinds, num_views, codes.device)
        views = RepresentedViews(codes, kinds.repeat_interleave(batch_size), num_views)
        if config.has_decoder:
            views.scored_rows = self._scored_rows(num_views, batch_size, codes.device)
        if config.has_contrast or config.has_latent or (self.training and config.has_condition):
            if config.features_are_causal:
                states = self._causal_states(views, **kwargs)
            else:
                states = self.encoder.encode(codes, views.view_kinds, is_causal=False, **kwargs)
            patches = states[:, 1:]
            pooled, projections, patch_projections = project(self, self.encoder.pooler(patches), patches, num_views)
            views.pooler_output = pooled
        if config.has_latent:
            posterior = self.latent(pooled)
            views.latents = posterior.rsample()
            views.log_densities = (log_prior(views.latents) + posterior.log_prob(views.latents)) / 2
            projections = nn.functional.normalize(views.latents, dim=-1)
        if config.has_contrast:
            views.objective_batch = self.objective.Batch(
                projections=projections,
                patch_projections=patch_projections,
                view_kinds=kinds if view_kinds is None else view_kinds,
                pixel_values=pixel_values if "pixel_values" in self.objective.needs else None,
                pooled=views.pooler_output if "pooled" in self.objective.needs else None,
            )
            if "decoder_states" in self.objective.needs:
                # All rows are scored then.
                if views.scored_states is None:
                    views.scored_states = self.encoder.encode(codes, views.view_kinds, is_causal=True, **kwargs)
                views.decoder_states = self.decode(views.scored_states[:, :-1], **kwargs)
                views.objective_batch.decoder_states = views.decoder_states.unflatten(0, (num_views, -1))
        return views

    @torch.no_grad()
    def keys(self, views: RepresentedViews) -> dict[str, torch.Tensor | None]:
        """The parts of the objective's batch that the momentum encoder makes, by name."""
        if self.momentum_encoder is None:
            return {}
        if "patch_embeddings" in self.objective.needs:
            parts = {"patch_embeddings": self.momentum_encoder.embeddings.patches(views.codes), "codes": views.codes}
            return {name: part.unflatten(0, (views.num_views, -1)) for name, part in parts.items()}
        # By a call of its own, whose hidden states are not among those of this model.
        outputs = self.momentum_encoder.encoder(codes=views.codes, view_kinds=views.view_kinds)
        _, keys, patch_keys = project(
            self.momentum_encoder, outputs.pooler_output, outputs.last_hidden_state, views.num_views
        )
        return {"keys": keys, "patch_keys": patch_keys}

    def score(self, views: RepresentedViews, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mean negative log-likelihood of a code, (), and that of each image that is scored without gradient, (V', R), in
        nats.
        """
        rows = views.scored_rows.flatten()
        codes, kinds, states = views.codes[rows], views.view_kinds[rows], views.scored_states
        if views.decoder_states is not None:
            states = views.decoder_states
        else:
            if states is None:
                states = self.encoder.encode(codes, kinds, is_causal=True, **kwargs)
            condition = None
            if self.config.has_latent:
                condition = self.condition(views.latents.flatten(0, 1)[rows])
            elif self.training and self.config.has_condition:
                condition = self._told_in_training(views, rows)
            states = self.decode(states[:, :-1], condition=condition, **kwargs)
        nll = self.depth_head.nll(states, codes)
        loss = nll.mean()
        if self.config.has_latent:
            # A-MIM (Livne et al. 2019, arXiv 1910.03175) with all of log p(image | latent), as in NeMo.
            loss = loss - views.log_densities.flatten()[rows].mean() / self.config.num_dims
        return loss, nll.detach().sum(dim=(1, 2)).view_as(views.scored_rows)

    def _causal_states(self, views: RepresentedViews, **kwargs) -> torch.Tensor:
        """Causal states of all rows, (V * B, S + 1, D); `views` gets those of what is scored."""
        codes, kinds, rows = views.codes, views.view_kinds, views.scored_rows
        if rows is None or not self.training or rows.numel() == len(codes):
            states = self.encoder.encode(codes, kinds, is_causal=True, **kwargs)
            if rows is not None:  # The scored views are the first ones.
                views.scored_states = states[: rows.numel()]
            return states
        # In a call of their own: the others take no part in the backward pass of the likelihood.
        is_scored = torch.zeros(len(codes), device=codes.device).index_fill(0, rows.flatten(), 1)
        order = is_scored.argsort(descending=True, stable=True)
        first, others = order.split((rows.numel(), len(codes) - rows.numel()))
        views.scored_states, rest = (
            self.encoder.encode(codes[part], kinds[part], is_causal=True, **kwargs) for part in (first, others)
        )
        return torch.cat([views.scored_states, rest]).index_select(0, order.argsort())

    def _told_in_training(self, views: RepresentedViews, rows: torch.Tensor) -> torch.Tensor:
        """
        What the decoder is told of the views in `rows` (R,): features of another view of the same image, or nothing,
        (R, D).
        """
        config, pooled = self.config, views.pooler_output
        num_views, batch_size = pooled.shape[:2]
        if num_views == 1:
            raise ValueError(
                "decoder_condition='features' learns from the features of another view of an image, but pixel_values "
                "holds one view; pass two or more, or set decoder_condition='none'."
            )
        features = (pooled if config.condition_gradient else pooled.detach()).flatten(0, 1)
        other = rows + batch_size * torch.randint(1, num_views, rows.shape, device=rows.device)
        is_given = torch.rand(rows.shape, device=rows.device) < config.condition_share
        # Of all rows, whether given or not: each process then has a gradient for each parameter.
        told = self.condition(features[other % len(features)])
        return torch.where(is_given[:, None], told, self.condition.nothing)

    def _scored_rows(self, num_views: int, batch_size: int, device: torch.device) -> torch.Tensor:
        """
        Growing rows (V', R): all images of each of the `num_generative_views` first views, or in training
        `generative_share` of them, at least one; each view draws its own.
        """
        num_views = min(self.config.num_generative_views or num_views, num_views)
        chosen = torch.arange(batch_size, device=device).expand(num_views, -1)
        if self.training and self.config.generative_share < 1:
            num_drawn = max(1, round(self.config.generative_share * batch_size))
            chosen = torch.rand(num_views, batch_size, device=device).argsort(dim=1)[:, :num_drawn].sort(dim=1).values
        return chosen + batch_size * torch.arange(num_views, device=device)[:, None]

    def save_pretrained(self, save_directory, is_main_process=True, push_to_hub=False, repo_id=None, **kwargs):
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            custom_object_save(self.objective, save_directory)
            # Only now is the folder complete.
            if push_to_hub:
                self.push_to_hub(repo_id or Path(save_directory).name, **kwargs)


def project(
    parts: HybridForPreTraining | MomentumEncoder, pooled: torch.Tensor, patches: torch.Tensor, num_views: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    Pooled features (V * B, P) and states of the patches (V * B, S, D) -> pooled features (V, B, P), projections
    (V, B, projection_dim) and those of the single patches (V, B, S, projection_dim); `None` for a projector that is not
    there.
    """
    pooled, patches = (rows.unflatten(0, (num_views, -1)) for rows in (pooled, patches))
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
        chosen: type[Any] = get_class_from_dynamic_module(
            config.auto_map["Objective"], config._name_or_path, revision=commit
        )
    else:
        if name not in OBJECTIVES:
            raise ValueError(unknown_key_message(name, list(OBJECTIVES), "The table of the field 'objective'"))
        chosen = objective_class(name)
        config.auto_map["Objective"] = f"{name}.{chosen.__name__}"
    known = inspect.signature(chosen).parameters
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(unknown_key_message(key, list(known), f"objective {name!r}"))
        if not _is_of_kind(value, known[key].annotation):
            kind = inspect.formatannotation(known[key].annotation)
            raise ValueError(f"Argument {key}={value!r} of objective {name!r} must be of type {kind}, and finite.")
    arguments |= {
        name: getattr(config, name) for name in ("projection_dim", "hidden_size", "pooled_size") if name in known
    }
    missing = [key for key, value in known.items() if value.default is value.empty and key not in arguments]
    if missing:
        raise ValueError(
            f"objective={config.objective} lacks {', '.join(missing)}; see the docstring of {chosen.__name__}."
        )
    if "decoder_states" in chosen.needs and not config.has_decoder:
        raise ValueError(
            f"objective={config.objective} works on the states of the decoder, which is off (generative_weight=0); "
            "raise generative_weight, or choose another objective."
        )
    if "decoder_states" in chosen.needs and (config.generative_share < 1 or config.num_generative_views is not None):
        raise ValueError(
            f"objective={config.objective} works on the states of the decoder, which are made of all views; set "
            f"generative_share=1 and num_generative_views=None, not {config.generative_share} and "
            f"{config.num_generative_views}."
        )
    if "decoder_states" in chosen.needs and config.has_condition:
        raise ValueError(
            f"objective={config.objective} works on the states of the decoder, to which decoder_condition='features' "
            "would give those of the other views; set decoder_condition='none', or choose another objective."
        )
    if config.has_latent and chosen.needs & {"keys", "patch_projections"}:
        raise ValueError(
            f"objective={config.objective} does not work on projections of the views alone, which the latents of "
            "decoder_condition='latent' are; choose objective={'name': 'cmim'}, or another decoder_condition."
        )
    return chosen(**arguments)


def _is_of_kind(value: Any, annotation: Any) -> bool:
    """Whether an argument is what its annotation says; an int is a float, a bool is neither."""
    kinds = get_args(annotation) or (annotation,)
    if annotation is inspect.Parameter.empty or isinstance(value, bool):
        return annotation is inspect.Parameter.empty or bool in kinds
    if isinstance(value, (int, float)) and not math.isfinite(value):
        return False
    return any(isinstance(value, (int, float) if kind is float else kind) for kind in kinds)


__all__ = ["HybridForPreTraining"]
