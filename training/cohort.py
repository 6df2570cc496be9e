"""Check a cohort table, import a data set as it is distributed, and write the splits.

msamil-train cohort cohort.csv --folds 5
msamil-train cohort --from ubc-ocean --folder UBC-OCEAN -o cohort.csv --folds 5
"""

from __future__ import annotations

from .cohort_table import Cohort, CohortRow, read_cohort, write_cohort

__all__ = ["Cohort", "CohortRow", "read_cohort", "write_cohort"]
