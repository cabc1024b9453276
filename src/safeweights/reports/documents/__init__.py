"""The documents that ``--json`` prints, as types; the JSON schemas are generated from them.

``python -m safeweights.reports.schema docs/schema`` writes the schemas; tests validate the output of all
commands with them. Every key is always present; its value is null if it does not apply. Within a version,
keys may be added, but never removed or changed in meaning.

One module for each group of commands, with its own ``DOCUMENTS``. Types only: no commands, no I/O.
"""

# ruff: noqa: F403 - each module lists its names in __all__

from . import checking, common, models, transfer, trust, values, writing
from .checking import *
from .common import *
from .models import *
from .transfer import *
from .trust import *
from .values import *
from .writing import *

DOCUMENTS = (
    *models.DOCUMENTS,
    *values.DOCUMENTS,
    *checking.DOCUMENTS,
    *writing.DOCUMENTS,
    *trust.DOCUMENTS,
    *transfer.DOCUMENTS,
    *common.DOCUMENTS,
)
"""The documents that have a schema file."""
