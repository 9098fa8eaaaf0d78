"""Whatever a configuration or an image is: it works to the end, or is refused with a word on what is wrong."""

import inspect
import re
import tempfile
import traceback

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from objective_fixtures import ARGUMENTS
from PIL import Image
from transformers.activations import ACT2FN

from modeling_hybrid import HybridConfig, HybridForPreTraining, HybridImageProcessor
from modeling_hybrid.levels import pixels_to_levels
from modeling_hybrid.objectives import OBJECTIVES, objective_class


FEW = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
MANY = settings(FEW, max_examples=400)


def require_refusal(error: Exception, fields: dict) -> None:
    """It is told by us, or by the check of types, and names one of the fields."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = re.search(r"modeling_hybrid/(?!.*site-packages)|huggingface_hub/dataclasses\.py", last)
    told, arguments = f"{error} {error.__cause__ or ''}", fields.get("objective")
    names = [*fields, *(arguments if isinstance(arguments, dict) else ())]
    assert ours and any(re.search(rf"\b{name}\b", told) for name in names), (fields, last, repr(error))


# Configurations.


@st.composite
def sensible_fields(draw) -> dict:
    """Fields of small models that are right."""
    one_of = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    side, patch_size, heads, groups = one_of(1, 2, 3), one_of(1, 2, 3), one_of(1, 2), one_of(1, 2)
    name = draw(st.sampled_from(sorted(OBJECTIVES)))
    objective = {"name": name} | ARGUMENTS.get(name, {})
    if "num_samples" in inspect.signature(objective_class(name)).parameters:
        objective["num_samples"] = 8
    fields = {
        "image_size": side * patch_size,
        "num_channels": one_of(1, 3),
        "patch_size": patch_size,
        "num_levels": one_of(2, 5, 256),
        "num_view_kinds": one_of(2, 3),
        "hidden_size": 4 * heads * one_of(1, 2),
        "num_encoder_layers": one_of(1, 2),
        "num_decoder_layers": one_of(0, 1),
        "num_attention_heads": heads,
        "intermediate_size": one_of(None, 1, 8),
        "hidden_act": draw(st.sampled_from(sorted(ACT2FN))),
        "hidden_dropout": one_of(0, 0.5),
        "attention_dropout": one_of(0, 0.5),
        "code_embedding_size": one_of(1, 3),
        "encoder_attention": one_of("causal", "bidirectional", "two_pass"),
        "pooling": one_of("attention", "contextual", "mean", "regional"),
        "pooling_grid": draw(st.integers(1, side)),
        "code_distribution": one_of("softmax", "logistic_mixture"),
        "num_mixture_components": one_of(1, 3),
        "depth_hidden_size": groups * one_of(1, 3),
        "num_depth_layers": one_of(0, 1),
        "num_depth_groups": groups,
        "projection_hidden_size": one_of(1, 8),
        "projection_dim": one_of(1, 4),
        "objective": objective,
        "contrastive_weight": one_of(0, 0.1, 1),
        "generative_weight": one_of(0, 0.1, 1),
        "generative_share": one_of(0.01, 0.5, 1),
        "num_generative_views": one_of(None, 1, 5),
        "decoder_condition": one_of("none", "features", "latent"),
        "features_from": one_of("encoder", "decoder", "joined"),
        "condition_share": one_of(0.1, 1),
        "condition_noise": one_of(0, 0.5),
        "condition_gradient": draw(st.booleans()),
    }
    # What goes together.
    fields["num_view_kinds"] = 3 if name == "demi" else fields["num_view_kinds"]
    if "decoder_states" in objective_class(name).needs:
        fields |= {"encoder_attention": one_of("causal", "two_pass"), "generative_weight": one_of(0.1, 1)}
        fields |= {"generative_share": 1, "num_generative_views": None, "decoder_condition": "none"}
    if fields["encoder_attention"] == "bidirectional":
        fields |= {"generative_weight": 0, "contrastive_weight": one_of(0.1, 1)}
    if fields["contrastive_weight"] == 0:
        fields["generative_weight"] = one_of(0.1, 1)
    if fields["decoder_condition"] == "latent" and objective_class(name).needs & {"keys", "patch_projections"}:
        fields["decoder_condition"] = "features"
    if fields["generative_weight"] == 0 or fields["num_decoder_layers"] == 0:
        fields["decoder_condition"] = "none"
    if fields["generative_weight"] == 0 or fields["decoder_condition"] == "latent":
        fields["features_from"] = "encoder"
    return fields


ANYTHING = st.one_of(
    st.integers(-2, 9),
    st.sampled_from([-1.0, 0.0, 0.5, 1.5, float("nan"), float("inf")]),
    st.text(max_size=3),
    st.none(),
    st.booleans(),
    st.just([]),
    st.just({}),
    st.just({"name": 3}),
)


@st.composite
def any_fields(draw) -> dict:
    """Such fields, of which some may be anything; or a name that is none."""
    fields = draw(sensible_fields())
    for name in draw(st.lists(st.sampled_from(HybridConfig.own_keys()), max_size=2, unique=True)):
        fields[name] = draw(ANYTHING)
    if draw(st.booleans()) and isinstance(fields["objective"], dict) and fields["objective"].get("name") in OBJECTIVES:
        arguments = inspect.signature(objective_class(fields["objective"]["name"])).parameters
        changed = draw(st.sampled_from(sorted({"name", *arguments})))
        fields["objective"] = fields["objective"] | {changed: draw(ANYTHING)}
    return fields


def view_kinds_of(config: HybridConfig) -> torch.Tensor:
    """Of three views, each of another kind where there are as many."""
    return torch.arange(3).clamp(max=config.num_view_kinds - 1)


def check_configuration(fields: dict) -> None:
    """It works, or is refused."""
    try:
        model = HybridForPreTraining(HybridConfig(**fields))
    except (ValueError, StrictDataclassError) as error:
        return require_refusal(error, fields)
    try:
        model.objective.check_views(view_kinds_of(model.config).tolist(), 4)
    except ValueError as error:  # a kind of view that the objective needs has no tag
        assert "view" in str(error)
    else:
        check_model(model)
    return None


def check_model(model: HybridForPreTraining) -> None:
    """One step, saved, loaded and generated from."""
    config = model.config
    shape = (config.num_channels, config.image_size, config.image_size)
    levels = torch.randint(config.num_levels, (3, 4, *shape))
    pixel_values = levels * (2 / (config.num_levels - 1)) - 1
    inputs = {
        "pixel_values": pixel_values,
        "view_kinds": view_kinds_of(config),
        "labels": torch.tensor([0, 0, 1, 1]),
        "sample_ids": torch.arange(4),
        "boxes": torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 4, 4),
        "teacher": torch.randn(4, getattr(model.objective, "teacher_size", 1)),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()(**inputs).loss.backward()
    optimizer.step()
    model.update_momentum_encoder()
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        loaded = HybridForPreTraining.from_pretrained(folder).eval()
        for one in (model, loaded):
            assert all(parameter.isfinite().all() for parameter in one.parameters())
        features = [one.encoder(pixel_values[0]).pooler_output for one in (model, loaded)]
        assert features[0].shape == (4, config.pooled_size) and torch.equal(*features)
        if config.has_likelihood:
            torch.testing.assert_close(model.log_likelihood(pixel_values[0]), loaded.log_likelihood(pixel_values[0]))
            codes = loaded.generate(batch_size=2)
            assert codes.shape == (2, config.num_patches, config.num_codes)
            assert codes.min() >= 0 and codes.max() < config.num_levels


@FEW
@given(sensible_fields())
def test_a_right_configuration_works(fields):
    check_model(HybridForPreTraining(HybridConfig(**fields)))


@FEW
@given(any_fields())
def test_any_configuration_works_or_is_refused(fields):
    check_configuration(fields)


@pytest.mark.slow
@MANY
@given(sensible_fields())
def test_many_right_configurations_work(fields):
    check_model(HybridForPreTraining(HybridConfig(**fields)))


@pytest.mark.slow
@MANY
@given(any_fields())
def test_many_configurations_work_or_are_refused(fields):
    check_configuration(fields)


# Images.


DTYPES = ("uint8", "int64", "float32", "float64", "bool", "uint16")
MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "LA",
    "I;16",
    "PA",
    "La",
    "RGBa",
    "RGBX",
)


@st.composite
def any_image(draw):
    """What users may take for an image, or for several."""
    height, width = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    kind = draw(st.sampled_from(["array", "tensor", "pil", "list", "other"]))
    if kind == "other":
        return draw(st.one_of(st.none(), st.integers(), st.just([]), st.just({}), st.just([None]), st.just(b"?")))
    if kind == "list":
        return draw(st.lists(any_image(), max_size=2))
    if kind == "pil":
        return Image.new(draw(st.sampled_from(MODES)), (width, height))
    channels = draw(st.sampled_from([1, 2, 3, 4, 5]))
    shapes = [
        (height, width),
        (height, width, channels),
        (channels, height, width),
        (2, channels, height, width),
        (3,),
        (),
    ]
    array = np.zeros(draw(st.sampled_from(shapes)), draw(st.sampled_from(DTYPES)))
    array[...] = draw(st.sampled_from([0, 1, 255] if array.dtype == np.uint8 else [0, 1]))
    return torch.from_numpy(array) if kind == "tensor" and array.dtype != np.uint16 else array


def check_image(image, num_channels: int, num_levels: int) -> None:
    """Pixels on the grid of levels, which give an image back; or a refusal of ours."""
    processor = HybridImageProcessor(
        size={"height": 4, "width": 4}, num_channels=num_channels, num_levels=num_levels, patch_size=2
    )
    try:
        pixel_values = processor(image, return_tensors="pt").pixel_values
    except (ValueError, TypeError, OSError) as error:
        words = dict.fromkeys(("image", "images", "Image", "Images", "num_channels", "pixels"))
        if not isinstance(error, OSError):  # of Pillow, about a file
            require_refusal(error, words)
        return
    assert pixel_values.shape[1:] == (num_channels, 4, 4) and pixel_values.dtype == torch.float32
    levels = pixels_to_levels(pixel_values, num_levels)
    torch.testing.assert_close(levels * (2 / (num_levels - 1)) - 1, pixel_values)
    for again in processor.pixels_to_images(pixel_values):
        assert again.size == (4, 4) and again.mode == {1: "L", 3: "RGB"}[num_channels]


@settings(FEW, max_examples=60)
@given(any_image(), st.sampled_from([1, 3]), st.sampled_from([2, 17, 256]))
def test_any_image_is_processed_or_refused(image, num_channels, num_levels):
    check_image(image, num_channels, num_levels)


@pytest.mark.slow
@settings(FEW, max_examples=3000)
@given(any_image(), st.sampled_from([1, 3]), st.sampled_from([2, 17, 256]))
def test_many_images_are_processed_or_refused(image, num_channels, num_levels):
    check_image(image, num_channels, num_levels)
