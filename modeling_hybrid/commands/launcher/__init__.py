"""
Entry point of `hybrid`, installed as a package of its own, `hybrid_command`: `import modeling_hybrid` loads torch and
transformers, which takes seconds, and help needs neither.
"""

import sys
from importlib.util import find_spec, module_from_spec


def main() -> None:
    package = module_from_spec(find_spec("modeling_hybrid"))

    def run_package(name: str):
        """The package is run when the first of its names is asked for: by a verb, after it has said so."""
        del package.__getattr__
        package.__spec__.loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = run_package
    sys.modules[package.__name__] = package
    from modeling_hybrid.commands.app import main

    main()
