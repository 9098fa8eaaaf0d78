"""
Images from nothing in two stages, features first: what they are worth beside those that the model draws at once.

Shape letters: N images, P width of the pooled feature.
"""

import torch

from modeling_hybrid.feature_density import FeatureDensity

from ...reports import pictures
from ..judge import feature_space
from ..likeness import NUM_NEIGHBOURS, likeness
from ..subject import Findings, Subject
from .generation import sample
from .information import draw_from


# By the prefix of the results; those drawn at once are in the question `generation`.
GUIDANCE_SCALES = {"two_stage_": 1.0, "two_stage_guidance_15_": 1.5, "two_stage_guidance_30_": 3.0}
NUM_COMPONENTS, NUM_SHOWN = 50, 12


def evaluate(subject: Subject) -> Findings:
    """
    [`likeness`] to test images of images drawn from features, which a density of the training features gives, and
    their [`Space.legibility`], by guidance; and `two_stages.png`, a row for each below those drawn at once. Nothing
    where the decoder is told no features.
    """
    if subject.model.config.decoder_condition != "features":
        return Findings()
    train = torch.from_numpy(subject.features["train"])
    density = FeatureDensity(train.shape[1], min(NUM_COMPONENTS, len(train) // 2)).fit(train)
    available = min(len(subject.levels["train"]), len(subject.levels["test"]))
    num_images = min(subject.affordable(subject.config.evaluation.num_scored_samples), available)
    generator = torch.Generator(subject.model.device).manual_seed(subject.config.seed)
    features = density.sample(max(num_images, NUM_SHOWN), torch.Generator().manual_seed(subject.config.seed))
    drawn = {prefix: draw_from(subject, features, generator, scale) for prefix, scale in GUIDANCE_SCALES.items()}
    rows = [sample(subject, NUM_SHOWN, generator), *(levels[:NUM_SHOWN] for levels in drawn.values())]
    pictures.sheet(subject.images(torch.cat(rows)), subject.pictures / "two_stages.png", num_columns=NUM_SHOWN)
    if num_images <= NUM_NEIGHBOURS:
        return Findings()
    space = feature_space(subject)
    test, results = space.features(subject.splits.test.all_levels(num_images)), {}
    for prefix, levels in drawn.items():
        found = likeness(test, space.features(levels[:num_images])) | space.legibility(levels[:num_images])
        results |= {prefix + key: value for key, value in found.items()}
    return Findings(results, num_images={"two-stage samples": num_images})
