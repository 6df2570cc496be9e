"""Fail when a module or a function outgrows the size budget (docs/architecture.md)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

MODULE_LINES = 400
FUNCTION_LINES = 40
STEP_LINES = 60
STEPS = ("forward", "aggregate", "training_step")


def too_long(path: Path) -> list[str]:
    """One line per offence in a file."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    found = (
        [f"{path}: {lines} lines, at most {MODULE_LINES}"]
        if lines > MODULE_LINES
        else []
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            size = (
                node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
            )
            limit = (
                STEP_LINES
                if node.name in STEPS or node.name.endswith("_step")
                else FUNCTION_LINES
            )
            if size > limit:
                found.append(
                    f"{path}:{node.lineno} {node.name}: {size} lines, at most {limit}"
                )
    return found


def main() -> int:
    """Check everything we ship."""
    files = sorted(p for root in ("src", "training") for p in Path(root).rglob("*.py"))
    offences = [line for path in files for line in too_long(path)]
    print("\n".join(offences) or f"{len(files)} modules within the size budget")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
