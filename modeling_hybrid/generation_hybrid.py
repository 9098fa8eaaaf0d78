"""
Sampling of images, on transformers' `generate`: its configuration, logits processors and caches, with K codes a step.

Shape letters: B images, S patches, K codes of a patch, L levels.
"""

import math
from functools import partial

import torch
from transformers import DynamicCache, GenerationMixin
from transformers.generation import (
    BaseStreamer,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationMode,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .condition import Features
from .contrastive_search import contrastive_search
from .patch_codes import check_codes, pixels_to_codes
from .sampling import Draw, GuidedDraw


# Processors that look at the logits of one code only. Others count or forbid earlier ids, which here are codes of
# many different pixels.
_SUPPORTED_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
_REFUSED_ARGUMENTS = (
    "assistant_model",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "custom_generate",
    "input_ids",
    "inputs",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)


class HybridGenerationMixin(GenerationMixin):
    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        num_given_rows: int | None = None,
        codes: torch.Tensor | None = None,
        batch_size: int | None = None,
        features: Features | None = None,
        view_kind: int = 0,
        generator: torch.Generator | None = None,
        streamer: BaseStreamer | None = None,
        generation_config=None,
        **kwargs,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        r"""
        Sample images, or complete them. Sampling is the default (`do_sample=True`, all levels); temperature, top-k,
        top-p, `use_cache`, `cache_implementation`, `num_return_sequences` and `guidance_scale` mean what they mean in
        transformers. `penalty_alpha` with `top_k` is contrastive search, for models of one code a patch
        ([`contrastive_search`]): a completion without repetition, always the same.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Images to complete, in [-1, 1]; without
                `num_given_rows`, images to vary, of which the decoder is told the features and nothing else.
            num_given_rows (`int`, *optional*): How many rows of pixels of `pixel_values` are kept, from the top; a
                multiple of the patch size.
            codes (`torch.Tensor` of shape `(B, S', K)`, *optional*): The first S' patches, instead of `pixel_values`.
            batch_size (`int`, *optional*, defaults to 1): How many images to sample from nothing; a model with latents
                draws one for each by `sample_features`.
            features (`torch.Tensor` of shape `(B, P)`, *optional*): What the decoder is told of each image:
                `pooler_output` of the encoder, a mean of two of them, ... `guidance_scale` above 1 follows them more
                closely. A list with a row `(P,)` or `None` for each image gives some images none.
            view_kind (`int`, *optional*, defaults to 0): Tag of the images to sample; 0 is the clean image.
            generator (`torch.Generator`, *optional*): Source of randomness on the model's device; the default
                generator (`torch.manual_seed`, `transformers.set_seed`) if unset.
            streamer (`BaseStreamer`, *optional*): Its `put` is called with the given patches `(B, S', K)`, if any, then
                with each new one `(B, 1, K)`, on the CPU, and its `end` after the last.

        Returns:
            codes `(B, S, K)`, which `image_processor.codes_to_images` turns into images; with
            `return_dict_in_generate=True` an output whose `sequences` are these codes.

        Raises:
            ValueError: a mode that cannot be had (beams, assistants, processors that count earlier ids, lengths,
                contrastive search of patches of several codes, with sampling, guidance, a static cache or no `top_k`),
                an image or prefix that does not fit, an encoder without a likelihood, features that do not fit or that
                the model cannot be told, or `guidance_scale` below 1 or without features.
        """
        self.require_decoder()
        for name in _REFUSED_ARGUMENTS:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"generate() does not support {name}={kwargs[name]!r}: an image has a fixed number of patches, and "
                    "each step draws all codes of one patch. Pass pixel_values with num_given_rows, or codes, to "
                    "complete images, and batch_size to sample new ones; forward() gives logits and states."
                )
        if self.condition is not None and pixel_values is not None and num_given_rows is None and features is None:
            features, pixel_values = self.features_to_tell(pixel_values.to(self.device), generator), None
        if features is not None and pixel_values is None and codes is None and batch_size is None:
            batch_size = len(features)
        prefix = self._given_codes(pixel_values, num_given_rows, codes, batch_size)
        if self.config.has_latent and features is None:
            if prefix.shape[1] > 0:
                raise ValueError(
                    "This model has p(image | latent) alone, so it completes images of a known latent only: pass "
                    "features, for instance model.posterior(pixel_values).mean."
                )
            features = self.sample_features(len(prefix), generator)
        if not 0 <= view_kind < self.config.num_view_kinds:
            raise ValueError(f"view_kind={view_kind} must lie in 0..{self.config.num_view_kinds - 1}.")
        if generation_config is None:
            if kwargs.get("penalty_alpha"):
                kwargs.setdefault("do_sample", False)
            # transformers would decode greedily, or keep the 50 likeliest levels only.
            if self.generation_config.do_sample is None:
                kwargs.setdefault("do_sample", True)
            if self.generation_config.top_k is None:
                kwargs.setdefault("top_k", 0)
        tags = torch.full((len(prefix), 1), view_kind, dtype=torch.long, device=self.device)
        return super().generate(
            inputs=tags,  # the main input, `pixel_values`, is not what the loop starts from
            input_ids=tags,
            codes=prefix,
            condition=self.told(features, len(prefix)),
            generator=generator,
            patch_streamer=streamer,  # transformers would stream the tags
            generation_config=generation_config,
            max_length=self.config.num_patches + 1,
            custom_generate=_sample_patches,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, input_ids, codes=None, condition=None, generator=None, patch_streamer=None, past_key_values=None, **kwargs
    ):
        """Names the arguments that `generate` hands to the sampling loop; the loop itself needs no preparation."""
        return {"input_ids": input_ids, "codes": codes, "past_key_values": past_key_values}

    def _given_codes(self, pixel_values, num_given_rows, codes, batch_size) -> torch.Tensor:
        """The patches to start from, (B, S', K); S' = 0 when nothing is given."""
        config = self.config
        if pixel_values is not None and codes is not None:
            raise ValueError("Pass pixel_values or codes, not both.")
        if batch_size is not None and (pixel_values is not None or codes is not None):
            raise ValueError(
                f"batch_size={batch_size} is for sampling from nothing; with pixel_values or codes the batch size is "
                "theirs (num_return_sequences asks for several completions of each)."
            )
        if (pixel_values is None) != (num_given_rows is None):
            raise ValueError("Completion needs both pixel_values and num_given_rows (how many rows of them to keep).")
        if pixel_values is not None:
            if num_given_rows % config.patch_size or not 0 <= num_given_rows <= config.image_size:
                raise ValueError(
                    f"num_given_rows={num_given_rows} must be a multiple of patch_size={config.patch_size} between 0 "
                    f"and image_size={config.image_size}."
                )
            patches_a_row = config.image_size // config.patch_size
            codes = pixels_to_codes(pixel_values.to(self.device), config)
            return codes[:, : num_given_rows // config.patch_size * patches_a_row]
        if codes is not None:
            check_codes(codes, config)
            return codes.to(self.device)
        batch_size = 1 if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        return torch.empty(batch_size, 0, config.num_codes, dtype=torch.long, device=self.device)


def _check_contrastive_search(model, generation_config, is_contrastive: bool, is_guided: bool, past_key_values) -> None:
    """Raise `ValueError` where `penalty_alpha` is set and cannot be followed."""
    alpha = generation_config.penalty_alpha
    if not is_contrastive:
        raise ValueError(
            f"penalty_alpha={alpha} is contrastive search, which needs do_sample=False and top_k of 2 or more, not "
            f"do_sample={generation_config.do_sample} and top_k={generation_config.top_k}."
        )
    if not alpha <= 1:
        raise ValueError(f"penalty_alpha={alpha} must lie in 0..1.")
    if model.config.num_codes > 1:
        raise ValueError(
            f"Contrastive search (penalty_alpha={alpha}) compares the states after single codes, but a patch of this "
            f"model has {model.config.num_codes}; it takes a grey model with patch_size=1. Leave penalty_alpha out."
        )
    if is_guided:
        raise ValueError(f"penalty_alpha={alpha} and guidance_scale cannot be had together; leave one of them out.")
    if past_key_values is not None and not isinstance(past_key_values, DynamicCache):
        raise ValueError(
            f"Contrastive search (penalty_alpha={alpha}) repeats and selects rows of the cache, which "
            f"{type(past_key_values).__name__} cannot; leave cache_implementation out."
        )


def _sample_patches(
    model,
    input_ids: torch.Tensor,
    logits_processor,
    stopping_criteria,
    generation_config,
    **model_kwargs,
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """
    The sampling loop: one decoder step per patch, then its K codes. `input_ids` (B, 1) are the view tags.

    What `generate` prepares (the codes, once per returned sequence; the cache, if any) comes in `model_kwargs`: an
    argument that is named here would be handed over as the user gave it.
    """
    codes, condition, generator, streamer = (
        model_kwargs.get(name) for name in ("codes", "condition", "generator", "patch_streamer")
    )
    past_key_values = model_kwargs.get("past_key_values")
    mode = generation_config.get_generation_mode()
    is_contrastive = mode is GenerationMode.CONTRASTIVE_SEARCH
    if not is_contrastive and mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        raise ValueError(f"generate() supports sampling and greedy decoding, not {mode.value!r}; leave num_beams at 1.")
    guidance_scale = generation_config.guidance_scale
    is_guided = guidance_scale not in (None, 1)
    if is_guided:
        if not 1 < guidance_scale < math.inf or condition is None or model.config.has_latent:
            raise ValueError(
                f"guidance_scale={guidance_scale} must be 1 (off) or more, and needs features to follow; pass features "
                "to a model with decoder_condition='features', which knows nothing given as well, or leave it out."
            )
        # Ours knows where the condition is.
        logits_processor = LogitsProcessorList(
            each for each in logits_processor if not isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor)
        )
        nothing = model.condition.nothing.expand_as(condition)
        condition = torch.cat([condition, nothing])
    for processor in logits_processor:
        if not isinstance(processor, _SUPPORTED_PROCESSORS):
            raise ValueError(
                f"generate() does not support {type(processor).__name__}: it reads earlier ids, and the codes of "
                "different pixels are not one sequence of ids. Supported: temperature, top_k, top_p, min_p, "
                "typical_p, epsilon_cutoff, eta_cutoff."
            )

    if is_contrastive or (generation_config.penalty_alpha and generation_config.top_k != 1):
        _check_contrastive_search(model, generation_config, is_contrastive, is_guided, past_key_values)
    draw = Draw(
        partial(logits_processor, input_ids) if logits_processor else None,
        is_greedy=mode is GenerationMode.GREEDY_SEARCH,
        generator=generator,
    )
    if is_guided:
        draw = GuidedDraw(guidance_scale, draw)
    view_kinds, num_given = input_ids[:, 0], codes.shape[1]
    new_codes = codes
    if streamer is not None and num_given:
        streamer.put(codes.cpu())
    if is_contrastive:
        put = (lambda new_codes: None) if streamer is None else (lambda new_codes: streamer.put(new_codes.cpu()))
        alpha, top_k = generation_config.penalty_alpha, generation_config.top_k
        codes = contrastive_search(model, codes, view_kinds, top_k, alpha, past_key_values, condition, put)
    for _ in range(codes.shape[1], model.config.num_patches):
        passed = codes if past_key_values is None else new_codes
        states = model.decoder_states(passed, view_kinds, past_key_values, condition)
        known = codes.repeat(2, 1, 1) if is_guided else codes
        new_codes = model.depth_head.sample(states[:, -1], known, draw)[: len(codes), None]
        codes = torch.cat([codes, new_codes], dim=1)
        if streamer is not None:
            streamer.put(new_codes.cpu())
    if streamer is not None:
        streamer.end()
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=codes, past_key_values=past_key_values)
    return codes
