"""txtgen: from text to a text generator.

import txtgen
model = txtgen.load("runs/story-1")
print(model.generate(["Once upon a time"], strategy="sample", temperature=0.8)[0].text)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txtgen.commands.models import load as load

__version__ = "0.2.1"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load`, and torch with it, only when it is asked for."""
    if name == "load":
        from txtgen.commands.models import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
