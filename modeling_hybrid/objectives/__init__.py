"""
Contrastive objectives: projections -> loss. One file each, one signature (`base.py`), chosen by name from one dict.
"""

from .base import Objective, ObjectiveBatch
from .info_nce import InfoNCE


OBJECTIVES: dict[str, type[Objective]] = {
    "info_nce": InfoNCE,
}

__all__ = ["OBJECTIVES", "InfoNCE", "Objective", "ObjectiveBatch"]
