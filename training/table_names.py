"""Names of the tables of the MHIM-MIL supplementary, without what makes them: `--help` stays quick."""

from __future__ import annotations

MHIM_TABLES: dict[str, tuple[str, str, str]] = {
    "mhim": ("table_mhim", "methods", "MHIM-MIL: methods plain and with MHIM"),
    "mhim-1": ("table_mhim", "table_1", "MHIM-MIL Table 1: random and low mask ratios"),
    "mhim-3": ("table_mhim", "table_3", "MHIM-MIL Table 3: decay of the high ratio"),
    "mhim-4": ("table_mhim", "table_4", "MHIM-MIL Table 4: randomly high masking"),
    "mhim-5": ("table_mhim", "table_5", "MHIM-MIL Table 5: initialisation"),
    "mhim-6": ("table_mhim", "table_6", "MHIM-MIL Table 6: layer and fusion"),
    "mhim-fig3": ("table_mhim", "figure_3", "MHIM-MIL Figure 3: high mask ratio"),
    "mhim-fig5": (
        "table_mhim",
        "figure_5",
        "MHIM-MIL Figure 5: teacher, initialised or not",
    ),
    "mhim-fig8": (
        "table_mhim",
        "figure_8",
        "MHIM-MIL Figure 8: weight of the consistency loss",
    ),
}
"""Registered in `tables.TABLES`."""
