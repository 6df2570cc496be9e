"""Segmentation of real colon-biopsy tiles (EBHI-Seg): five folds by case, beside the best global threshold.

    python -m benchmarks.segment_ebhi --data ../shared/data/tiles/ebhi_seg -o DIR

Each fold trains on three parts, chooses epoch and threshold on one, and is tested on the last. The rule is
the best single threshold on grey, saturation or a colour, chosen on the other four parts like the network's. Prints a
table and writes ebhi.json and tiles.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from napari_msamil.config import SegmenterSpec, small_config
from napari_msamil.device import choose_runtime
from training.cohort import Cohort, CohortRow
from training.segment import train_segment
from training.segment_data import read_items
from training.segment_figures import Rule, best_rule, mean_interval
from training.segment_task import SegmentSpec

FOLDS = 5


def rows_of(folder: Path) -> list[CohortRow]:
    """The manifest as cohort rows; the case is the patient."""
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    return [
        CohortRow(
            slide_id=f"{r['class']}/{Path(r['file']).stem}",
            path=folder / r["file"],
            patient_id=r["case"],
            label=r["class"],
            mask=folder / r["mask"],
            line=line,
        )
        for line, r in enumerate(records, 2)
    ]


def part_of_case(rows: list[CohortRow], seed: int) -> dict[str, int]:
    """Cases dealt to the parts, the largest first, each to the part with the fewest tiles."""
    count: dict[str, int] = defaultdict(int)
    for row in rows:
        count[row.patient_id] += 1
    order = np.random.default_rng(seed).permutation(sorted(count))
    parts, filled = {}, [0] * FOLDS
    for case in sorted(order, key=lambda c: -count[c]):
        parts[str(case)] = fold = int(np.argmin(filled))
        filled[fold] += count[case]
    return parts


def fold_cohort(
    folder: Path, rows: list[CohortRow], parts: dict[str, int], fold: int
) -> Cohort:
    roles = {fold: "test", (fold + 1) % FOLDS: "val"}
    base = Cohort(folder / "manifest.csv", tuple(rows), ())
    return base.with_splits(
        {r.slide_id: roles.get(parts[r.patient_id], "train") for r in rows}
    )


def run_fold(
    cohort: Cohort, out: Path, network: SegmenterSpec, spec: SegmentSpec
) -> list[dict[str, Any]]:
    """Figures of every test tile of one fold: the network's and the rule's; a finished fold is read back."""
    done = out / "lines.json"
    if done.is_file():
        found_lines: list[dict[str, Any]] = json.loads(done.read_text(encoding="utf-8"))
        return found_lines
    runtime = choose_runtime()
    train_segment(network, spec, cohort, out, runtime)
    with (out / "slides.csv").open(encoding="utf-8") as file:
        found = {r["slide_id"]: r for r in csv.DictReader(file) if r["split"] == "test"}
    learnt = [r for r in cohort.rows if r.split in ("train", "val")]
    rule: Rule = best_rule(list(read_items(learnt, network.size_px, network.channels)))
    lines = []
    for item in read_items(cohort.part("test"), network.size_px, network.channels):
        row, iou = found[item.name], rule.iou(item)
        everything = float(item.positive[0].mean())
        lines.append(
            {
                "tile": item.name,
                "case": item.group,
                "iou": float(row["iou"]),
                "dice": float(row["dice"]),
                "rule": rule.name,
                "rule_iou": iou,
                "rule_dice": 2 * iou / (1 + iou),
                "all_iou": everything,
                "all_dice": 2 * everything / (1 + everything),
            }
        )
    done.write_text(json.dumps(lines), encoding="utf-8")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", type=int, help="run this fold alone, print nothing")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    small = small_config("ebhi", ("a", "b")).segmenter
    assert small is not None
    network = small.model_copy(update={"channels": ("lesion",), "size_px": args.size})
    spec = SegmentSpec(
        epochs=args.epochs, patience=0, accumulate=4, lr=3e-3, seed=args.seed
    )
    rows: list[CohortRow] = rows_of(args.data)
    lines: list[dict[str, Any]] = []
    parts = part_of_case(rows, args.seed)
    for fold in range(FOLDS) if args.only is None else (args.only,):
        cohort = fold_cohort(args.data, rows, parts, fold)
        lines += run_fold(cohort, args.out / f"fold{fold}", network, spec)
    if args.only is None:
        report(lines, args.out)


def report(lines: list[dict[str, Any]], out: Path) -> None:
    """Print the table, means over all tiles with 95 % bootstrap intervals over cases; write JSON and CSV."""
    cases = [line["case"] for line in lines]
    titles = {
        "": "UNet++",
        "rule_": "best global threshold",
        "all_": "everything marked",
    }
    found: dict[str, Any] = {
        "tiles": len(lines),
        "cases": len(set(cases)),
    }
    print(f"{len(lines)} tiles of {len(set(cases))} cases, {FOLDS} folds by case")
    print(f"{'':24}{'IoU':26}{'Dice':26}")
    for prefix, title in titles.items():
        texts = []
        for key in ("iou", "dice"):
            interval = mean_interval([line[prefix + key] for line in lines], cases)
            found[f"{prefix}{key}"] = vars(interval)
            texts.append(str(interval))
        print(f"{title:24}{texts[0]:26}{texts[1]:26}")
    gain = mean_interval([line["iou"] - line["rule_iou"] for line in lines], cases)
    found["gain_over_rule"] = vars(gain)
    print(f"IoU gained over the threshold: {gain}")
    (out / "ebhi.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with (out / "tiles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
