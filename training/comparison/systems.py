"""Further systems of the field: where each is, and what it gave beside its plain control."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reports.reported import REPORTED
from ..reports.reported import table as markdown


@dataclass(frozen=True)
class System:
    """
    Args:
        place: the file that it is in, as a link of the page; or in what other form.
        missing: what of it is not in, or why none of it is.
        is_stopped: whether what was measured was reason enough to go no further.
    """

    title: str
    paper: str
    place: str = ""
    missing: str = ""
    is_stopped: bool = False


OBJECTIVES = "../modeling_hybrid/objectives"
QUESTIONS = "../training/evaluation/questions"
NOT_YET = "not in yet"

SYSTEMS: dict[str, System] = {
    "informative_embeddings": System(
        "informative embeddings (of cMIM)", "2502.19642", f"[decoder_features]({QUESTIONS}/decoder_features.py)"
    ),
    "opta": System("OpTA (of BECLR)", "2402.02444", f"[transductive]({QUESTIONS}/transductive.py)"),
    "dyce": System(
        "DyCE (of BECLR)",
        "2402.02444",
        missing="no: positives out of equal clusters are more often of another class than plain neighbours are, and "
        "with those ([nnclr](../modeling_hybrid/objectives/README.md#which-one)) the probes are below those of InfoNCE",
    ),
    "simcse": System("SimCSE", "2104.08821", "[recipe](../training/comparison/systems.yaml)"),
    "meow": System(
        "MEOW, AdaMEOW",
        "2212.13847",
        f"[meow]({OBJECTIVES}/meow.py), [true_negatives]({OBJECTIVES}/true_negatives.py)",
        missing="its prototypes: no, of two images in one of ten clusters .60 are of one class, of two neighbours .88, "
        "and with these as positives ([nnclr](../modeling_hybrid/objectives/README.md#which-one)) the probes are below "
        "those of InfoNCE; learnt weights (AdaMEOW): no, their gradient makes all of them small",
    ),
    "deb_cse": System("DebCSE", "2309.07396", f"[deb_cse]({OBJECTIVES}/deb_cse.py)"),
    "clip_rocket": System(
        "clip-rocket",
        "2305.08675",
        f"[info_nce]({OBJECTIVES}/info_nce.py), `label_smoothing`",
        missing="a temperature for each kind of view and a weight of local pairs: no, few-shot .758, .758 and .786 "
        "beside .762 (one seed; seeds differ by .02), for sixty lines, some where every model projects; a projector "
        "for each kind: not measured; all in commit 787788e",
    ),
    "core_tuning": System("Core-tuning", "2102.06605", "[core_tuning](../training/finetuning/core_tuning.py)"),
    "coconut": System(
        "COCONUT", "2310.02699", "[coconut](../training/finetuning/coconut.py), `python -m training.continual`"
    ),
    "masked_patch": System("M-CURL, masked contrast", "2010.07470", f"[masked_patch]({OBJECTIVES}/masked_patch.py)"),
    "certificate": System(
        "PAC-Bayes contrastive learning",
        "1910.04464",
        f"[certificate]({QUESTIONS}/certificate.py)",
        missing="of the error of classes; that of the contrastive risk: not in yet",
    ),
    "contrastive_search": System(
        "contrastive search (of SimCTG)",
        "2202.06417",
        "[contrastive_search](../modeling_hybrid/contrastive_search.py), `generate(penalty_alpha=, top_k=)`, "
        f"[completions]({QUESTIONS}/completions.py)",
    ),
    "crd": System(
        "CRD",
        "1910.10699",
        f"[crd]({OBJECTIVES}/crd.py), [feature_regression]({OBJECTIVES}/feature_regression.py), "
        "`python -m training.distill`",
        missing="its memory bank: no, other images of the batch stand for it",
    ),
    "mcl": System("MCL", "2402.11816", "`python -m training.multistage`, `data.clusters`"),
    "sep_clr": System(
        "SepCLR", "2402.11928", f"[sep_clr]({OBJECTIVES}/sep_clr.py), `python -m training.compare_codes`"
    ),
    "simlap": System("SimLAP (Hydra)", "2410.18200", f"[simlap]({OBJECTIVES}/simlap.py)"),
    "replaced_patches": System(
        "ELECTRA, Vega v1",
        "2003.10555",
        missing="no: level for a fifth more time, and lines in the likelihood of every model; in commit 898f3d0",
        is_stopped=True,
    ),
    "sup_re_mix": System(
        "SupReMix",
        "2309.16633",
        "[sup_re_mix](../training/finetuning/sup_re_mix.py), `python -m training.compare_regression`",
    ),
    "loco": System(
        "LoCo",
        "2008.01342",
        missing="no: level, for 1.6 times the seconds; a step of twelve layers of width 256 adds 357 MiB at its peak, "
        "end to end 565, and with recomputed layers, which keep the gradient and serve a likelihood too, 240; in "
        "commit 787788e",
        is_stopped=True,
    ),
    "auto_tcl": System(
        "AutoTCL",
        "2402.10434",
        missing="no: with the authors' weights the learned views change next to nothing (.98 to .99 of the pixels are "
        "kept), and are level with no augmentation, far below that of the recipe; in commit 552b2be",
        is_stopped=True,
    ),
    "cmim": System(
        "cMIM", "2502.19642", f"[cmim]({OBJECTIVES}/cmim.py), [recipe](../training/configs/digits_cmim.yaml)"
    ),
    "grace": System("GRACE", "", missing="no: a language model writes reasons, and a policy gradient rewards them"),
    "curl": System("CURL", "2004.04136", missing="no: an actor and a critic in an environment"),
    "contra_code": System("ContraCode", "2007.04973", missing="no: variants of a program by a compiler"),
}

TITLES = {reported.key: reported.column or reported.title for reported in REPORTED}
LOWER_IS_BETTER = {reported.key for reported in REPORTED if reported.better == "low"} | {
    "ece",
    "forgetting",
    "mean_absolute_error",
}


def store(path: Path, command: str, seeds: list[int], arms: dict[str, Any], dataset: str, split: str = "test") -> None:
    """Write a file that [`table`] reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"command": command, "seeds": seeds, "dataset": dataset, "split": split, "arms": arms}
    path.write_text(json.dumps(found, indent=2) + "\n")


def table(*stored: dict[str, Any]) -> str:
    """
    A row for each system and each arm that judges it.

    Args:
        stored: as [`store`] writes them: `dataset`, `split`, `seeds` and `arms`, of which those count that name their
            `system` and `control`, and have differences from it (`minus_control`); where steps were timed, `step_ratio`
            as well, and where they take longer `at_equal_seconds`, the differences from more steps of the control.
    """
    rows = []
    for name, system in SYSTEMS.items():
        title = f"[{system.title}](https://arxiv.org/abs/{system.paper})" if system.paper else system.title
        place = "; ".join(part for part in (system.place, system.missing) if part)
        found = [(one, arm) for one in stored for arm in one["arms"].values() if arm.get("system") == name]
        for one, arm in found:
            control = one["arms"][arm["control"]]["title"]
            values, words = _differences(arm["minus_control"]), verdict(arm["minus_control"])
            if longer := arm.get("at_equal_seconds"):
                values += f". Beside {longer['num_steps']} steps: {_differences(longer['minus_control'])}"
                if (word := verdict(longer["minus_control"])) != words:
                    words += f", at equal seconds {word}"
            words += ", not tried further" if system.is_stopped else ""
            where = f"{one['dataset']}, {one['split']}, seeds {', '.join(map(str, one['seeds']))}"
            step = f"{arm['step_ratio']:.2f}" if "step_ratio" in arm else ""
            rows.append([title, place, f"{arm['title']}, beside {control}: {where}", step, values, words])
        if not found:
            rows.append([title, place, "", "", "", "not measured" if system.place else ""])
    head = ["system", "where", "measured", "step, in steps of the control", "difference [95 %]", "verdict"]
    return markdown(head, rows)


def verdict(differences: dict[str, dict[str, float | None]]) -> str:
    """
    In one word, over the accuracies, or the absolute errors of values: "better" where an interval lies on the good side
    of zero and none on the other, "worse" the other way round, else "tie". What is neither is bold where its interval
    excludes zero, and decides nothing.
    """
    judged = [
        _word(key, found) for key, found in differences.items() if "accuracy" in key or key == "mean_absolute_error"
    ]
    if None in judged:
        return "one seed"
    found = {"better", "worse"} & set(judged)
    return found.pop() if len(found) == 1 else "tie"


def _word(key: str, difference: dict[str, float | None]) -> str | None:
    low, high = difference["low"], difference["high"]
    if low is None:
        return None
    if key in LOWER_IS_BETTER:
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "tie"


def _differences(found: dict[str, dict[str, float | None]]) -> str:
    return "; ".join(_difference(key, difference) for key, difference in found.items())


def _difference(key: str, difference: dict[str, float | None]) -> str:
    title, word = TITLES.get(key, key.replace("_", " ")), _word(key, difference)
    if word is None:
        return f"{title} {difference['mean']:+.3f}"
    text = f"{title} {difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return text if word == "tie" else f"**{text}**"
