"""The model card of a run, written from its `evaluation.json` and configuration; no value in it is typed by hand."""

import json
import shutil
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..config import PretrainConfig, to_dict
from ..disk import partial_of
from .markdown import all_text, code_block, text
from .reported import REPORTED


TEMPLATE = Path(__file__).parents[2] / "model_cards" / "template.md"


def write(output_dir: Path, checkpoint: Path, config: PretrainConfig) -> Path:
    """
    Write `output_dir/README.md`, and a copy of card and pictures into the checkpoint, which is what goes to the Hub.

    Reads `output_dir/evaluation.json`. Returns the path of the card.
    """
    results = json.loads((output_dir / "evaluation.json").read_text())
    dataset = config.card.dataset_name or config.data.dataset
    reported = [one for one in REPORTED if one.hub_metric is not None and one.of(results) is not None]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=config.card.license,
        datasets=[dataset],
        tags=["self-supervised", "contrastive", "image-generation", "density-estimation", "out-of-distribution"],
        model_name=config.card.model_name,
        eval_results=[
            EvalResult(
                task_type="image-classification" if one.hub_metric == "accuracy" else "unconditional-image-generation",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split="test",
                metric_type=one.hub_metric,
                metric_name=one.title,
                metric_value=round(one.of(results), 4),
            )
            for one in reported
        ],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        # Names and descriptions are what a user, or a data set, says: text, whatever they hold.
        config=all_text(to_dict(config)),
        model=config.model_config(),
        results=all_text(results),
        command=code_block(results["command"]),
        reported=[(one.title, one.show([one.of(results)]), one.show([one.of(results, "pixel_")])) for one in reported],
        dataset=text(dataset),
        pictures=sorted(path.name for path in (output_dir / "figures").glob("*.png")),
    )
    if checkpoint.parent == output_dir:
        card.save(checkpoint / "README.md")
        shutil.copytree(output_dir / "figures", checkpoint / "figures", dirs_exist_ok=True)
    # Last of all: a run is finished when its folder holds its card.
    card.save(partial_of(output_dir / "README.md"))
    partial_of(output_dir / "README.md").replace(output_dir / "README.md")
    return output_dir / "README.md"
