"""
One transformer that embeds, scores and generates images.

Importing the package registers its classes with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from .configuration_hybrid import NAMED_SIZES, HybridConfig
from .detection_hybrid import HybridForOutOfDistributionDetection
from .image_processing_hybrid import HybridImageProcessor, HybridImageProcessorTorchvision
from .modeling_hybrid import (
    HybridForImageClassification,
    HybridForImageGeneration,
    HybridModel,
    HybridPreTrainedModel,
)
from .pretraining_hybrid import HybridForPreTraining
from .version import __version__


AutoConfig.register(HybridConfig.model_type, HybridConfig)
AutoImageProcessor.register(
    HybridConfig,
    image_processor_classes={"pil": HybridImageProcessor, "torchvision": HybridImageProcessorTorchvision},
)
# What is registered `for_auto_class` is saved with its code, for readers who load it with `trust_remote_code=True`.
HybridConfig.register_for_auto_class()
HybridImageProcessor.register_for_auto_class()
HybridImageProcessorTorchvision.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, HybridModel),
    (AutoModelForPreTraining, HybridForPreTraining),
    (AutoModelForCausalLM, HybridForImageGeneration),
    (AutoModelForImageClassification, HybridForImageClassification),
):
    auto_class.register(HybridConfig, model_class)
    model_class.register_for_auto_class(auto_class.__name__)
# No Auto class is for detectors: of the two, AutoModel loads the one that a checkpoint was saved from, else the first.
AutoModel.register(HybridConfig, (HybridModel, HybridForOutOfDistributionDetection), exist_ok=True)
HybridForOutOfDistributionDetection.register_for_auto_class(AutoModel.__name__)

__all__ = [
    "NAMED_SIZES",
    "HybridConfig",
    "HybridForImageClassification",
    "HybridForImageGeneration",
    "HybridForOutOfDistributionDetection",
    "HybridForPreTraining",
    "HybridImageProcessor",
    "HybridImageProcessorTorchvision",
    "HybridModel",
    "HybridPreTrainedModel",
    "__version__",
]
