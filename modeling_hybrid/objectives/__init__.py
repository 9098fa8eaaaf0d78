"""
Objectives: projections -> contrastive loss. One file each, one signature (`base.py`), chosen by name.

A new objective is a new file, and a line here: its name, which is that of the file, and the name of its class.
"""

from importlib import import_module

from .base import Objective, ObjectiveBatch


OBJECTIVES: dict[str, str] = {
    "cacr": "Cacr",
    "clip": "Clip",
    "cmim": "CMim",
    "crd": "Crd",
    "deb_cse": "DebCSE",
    "decoupled": "Decoupled",
    "demi": "Demi",
    "feature_regression": "FeatureRegression",
    "info_nce": "InfoNCE",
    "isogclr": "ISogCLR",
    "masked_patch": "MaskedPatch",
    "meow": "Meow",
    "mochi": "MoCHi",
    "mv_dhel": "MvDhel",
    "mv_info_nce": "MvInfoNCE",
    "nnclr": "NNCLR",
    "pixpro": "PixPro",
    "sep_clr": "SepCLR",
    "siglip": "SigLip",
    "simctg": "SimCTG",
    "simlap": "SimLAP",
    "sup_con": "SupCon",
    "swav": "SwAV",
    "true_negatives": "TrueNegatives",
}


def objective_class(name: str) -> type[Objective]:
    """The class behind a name of `OBJECTIVES`."""
    return getattr(import_module(f".{name}", __name__), OBJECTIVES[name])


__all__ = ["OBJECTIVES", "Objective", "ObjectiveBatch", "objective_class"]
