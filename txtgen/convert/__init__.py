"""Models of other formats: in as checkpoints of ours, out as folders that transformers loads."""

from txtgen.convert.exporting import export_folder
from txtgen.convert.families import FAMILIES
from txtgen.convert.importing import import_folder

__all__ = ["FAMILIES", "export_folder", "import_folder"]
