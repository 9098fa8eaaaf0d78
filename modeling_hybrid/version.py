"""
The version, and what every file here needs: a checkpoint brings its code, but no requirements.

Imported first by the files that a load begins with, before what earlier versions lack.
"""

from transformers.utils.versions import require_version


__version__ = "0.1.0"
REQUIREMENTS = ("torch>=2.7", "transformers>=5.18")

for requirement in REQUIREMENTS:
    require_version(requirement, "To mend it: pip install -U torch transformers")
