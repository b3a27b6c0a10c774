"""The shipped policy as benchmarks change it."""

import re

from services.settings import REPOSITORY

POLICY = (REPOSITORY / "policies" / "fairlead.yaml").read_text()
PATIENT = re.sub(r"(?m)^admission:.*\n", "", POLICY)
"""It turns nobody away for being late: where every answer counts, however slow the machine and whatever befalls it."""
