"""
The detector: which images are of another kind than those of the data?

Shape letters: N images, C channels, H height, W width, P width of the regional means.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput, auto_docstring
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_hybrid import HybridConfig
from .modeling_hybrid import HybridForImageGeneration, prepare_codes
from .pooling import RegionalPooling
from .strangeness import StrangenessScore


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
        hidden_states (`tuple[torch.FloatTensor]`):
            With `output_hidden_states=True`: the input of the first layer, then the output (batch_size, positions,
            hidden_size) of each layer of encoder and decoder, in the order in which they run.
        attentions (`tuple[torch.FloatTensor]`):
            With `output_attentions=True`: the weights (batch_size, num_attention_heads, positions, positions) of the
            same.
    """

    scores: torch.FloatTensor | None = None
    likelihood_scores: torch.FloatTensor | None = None
    feature_scores: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


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
        self.strangeness = StrangenessScore(config.regional_size, with_likelihood=config.has_likelihood)
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

        train_features, _ = self._measure_all(train, batch_size, with_likelihood=False)
        self.strangeness.fit(train_features, *self._measure_all(validation, batch_size))
        return self

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> HybridOutOfDistributionOutput:
        scores = self.strangeness(*self._measure(pixel_values, **kwargs))
        return HybridOutOfDistributionOutput(scores["combined"], scores.get("likelihood"), scores["feature"])

    def _measure(
        self, pixel_values: torch.Tensor, with_likelihood: bool = True, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Regional means (B, P) and, if there are any, negative log-likelihoods (B,) in nats of clean images."""
        codes, view_kinds = prepare_codes(self.config, pixel_values, None, None)
        states, nll = self.measure(codes, view_kinds, with_likelihood, **kwargs)
        return self.average(states), nll

    def _measure_all(
        self, images: torch.Tensor | Iterable[torch.Tensor], batch_size: int, with_likelihood: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[`_measure`] of many images (N, C, H, W), or of batches of them, on the CPU in fp32."""
        batches = images.split(batch_size) if isinstance(images, torch.Tensor) else images
        features, nll = [torch.empty(0, self.config.regional_size)], []
        for batch in batches:
            if len(batch):
                rows, values = self._measure(batch.to(self.device), with_likelihood)
                features.append(rows.float().cpu())
                nll += [] if values is None else [values.float().cpu()]
        return torch.cat(features), torch.cat(nll) if nll else None


__all__ = ["HybridForOutOfDistributionDetection"]
