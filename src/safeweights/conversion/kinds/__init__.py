"""What a file is and what loading it can do, for every kind of file that people receive with a model.

`recognize` names the kind from the first and last bytes; `examine` reads what it takes to say whether
loading the file only builds data. Nothing in a file is executed or imported, and no kind is assumed
harmless: a file is data only if its kind is known and everything in it that could act was read.
"""

from ...format.kinds import DOCUMENTS, KINDS, Kind, recognize
from .concerns import Concern, Template
from .examining import SCANNED, Examination, beside_scan, examine, kind_of, name_concerns

__all__ = [
    "DOCUMENTS",
    "KINDS",
    "SCANNED",
    "Concern",
    "Examination",
    "Kind",
    "Template",
    "beside_scan",
    "examine",
    "kind_of",
    "name_concerns",
    "recognize",
]
