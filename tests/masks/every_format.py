"""Files of every format that masks come in."""

from __future__ import annotations

from tests.masks.case import Case
from tests.masks.set_cases import SETS
from tests.masks.single_cases import SINGLE

CASES: dict[str, Case] = {**SINGLE, **SETS}
"""At least one of each format."""
