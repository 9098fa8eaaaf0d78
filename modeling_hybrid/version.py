"""
The version, and what every file here needs: a checkpoint brings its code, but no requirements.

Imported first by the files that a load begins with, before what earlier versions lack.
"""

from transformers.utils.versions import require_version


__version__ = "0.1.0"
REQUIREMENT = "transformers>=5.18"

require_version(REQUIREMENT, "To mend it: pip install -U transformers")
