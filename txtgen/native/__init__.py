"""Machine code for generating on a CPU, built on demand; whoever uses it does without where it is not to be had."""

from txtgen.native.bindings import Library
from txtgen.native.building import UnavailableError, load_library

__all__ = ["Library", "UnavailableError", "load_library"]
