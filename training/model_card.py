"""The model card of a run, written from its `evaluation.json` and configuration; no figure in it is typed by hand."""

import json
import shutil
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .config import PretrainConfig, to_dict


TEMPLATE = Path(__file__).parent.parent / "model_cards" / "template.md"

# Keys of evaluation.json that the card reports: title, key, key of the same on raw pixels, metric type of the Hub.
REPORTED = (
    ("linear probe accuracy", "linear_accuracy", "pixel_linear_accuracy", "accuracy"),
    ("kNN accuracy", "knn_accuracy", "pixel_knn_accuracy", "accuracy"),
    ("few-shot accuracy", "few_shot_accuracy", "pixel_few_shot_accuracy", "accuracy"),
    ("fine-tuned accuracy", "finetuned_accuracy", None, "accuracy"),
    ("retrieval mean average precision", "retrieval_map", "pixel_retrieval_map", "mean_average_precision"),
    ("bits per dimension", "bits_per_dim", None, "bits_per_dim"),
    ("out-of-distribution AUROC, combined score", "ood_auroc", None, "roc_auc"),
    ("out-of-distribution AUROC, likelihood alone", "ood_auroc_likelihood", None, "roc_auc"),
    ("out-of-distribution AUROC, feature alone", "ood_auroc_feature", None, "roc_auc"),
    ("out-of-distribution FPR95, combined score", "ood_fpr95", None, "fpr95"),
    ("out-of-distribution AUROC, near sets", "ood_auroc_near", None, "roc_auc"),
    ("out-of-distribution AUROC, far sets", "ood_auroc_far", None, "roc_auc"),
    ("accuracy on corrupted images", "corrupted_accuracy", "pixel_corrupted_accuracy", "accuracy"),
    ("mean corruption error (pixels: 1)", "mean_corruption_error", None, "mean_corruption_error"),
    ("calibration error of the linear probe", "linear_ece", "pixel_linear_ece", "ece"),
    ("Frechet distance of samples", "frechet_distance", None, "frechet_distance"),
    ("precision of samples", "precision", None, "precision"),
    ("recall of samples", "recall", None, "recall"),
    ("effective rank of the features", "effective_rank", "pixel_effective_rank", "effective_rank"),
)


def write(output_dir: Path, checkpoint: Path, config: PretrainConfig) -> Path:
    """
    Write `output_dir/README.md`, and a copy of card and pictures into the checkpoint, which is what goes to the Hub.

    Reads `output_dir/evaluation.json`. Returns the path of the card.
    """
    results = json.loads((output_dir / "evaluation.json").read_text())
    dataset = config.card.dataset_name or config.data.dataset
    reported = [
        (title, results[key], results.get(pixel_key), metric)
        for title, key, pixel_key, metric in REPORTED
        if key in results
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        license=config.card.license,
        datasets=[dataset],
        tags=["self-supervised", "contrastive", "image-generation", "density-estimation", "out-of-distribution"],
        model_name=config.card.model_name,
        eval_results=[
            EvalResult(
                task_type="image-classification" if metric == "accuracy" else "unconditional-image-generation",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split="test",
                metric_type=metric,
                metric_name=title,
                metric_value=round(value, 4),
            )
            for title, value, _, metric in reported
        ],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        config=to_dict(config),
        model=config.model_config(),
        results=results,
        reported=reported,
        dataset=dataset,
        figures=sorted(path.name for path in (output_dir / "figures").glob("*.png")),
    )
    if checkpoint.parent == output_dir:
        card.save(checkpoint / "README.md")
        shutil.copytree(output_dir / "figures", checkpoint / "figures", dirs_exist_ok=True)
    # Last of all: a run is finished when its folder holds its card.
    card.save(output_dir / "README.md")
    return output_dir / "README.md"
