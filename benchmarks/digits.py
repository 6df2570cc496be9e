"""Digit bags with known instances: how well attention finds them, plain and with masked hard instance mining.

    python benchmarks/digits.py --positives 0.05 0.4 --seeds 5 -o results/digits.json

Every seed draws other digits for training, validation and test. Plain and MHIM share bags, start seed and schedule; MHIM
starts from the plain network, as in the paper. Both keep the state with the best validation AUC, the authors' rule: the
loss of few hard bags picks networks that have not learned yet. Differences are paired by seed. Finished lines of the
output file are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from napari_msamil.config import AggregatorSpec
from training.compare import BagParts, train_mhim, train_plain
from training.datasets.digits import DigitBagSpec, digit_parts
from training.mhim_task import MhimSpec
from training.mil_task import MilSpec

METHODS = {
    "abmil": {
        "hidden": 64,
        "attention_dim": 32,
        "gated": False,
        "activation": "relu",
        "bias": False,
    },
    "dsmil": {"hidden": 64, "query_dim": 32, "dropout": 0.25},
    "transmil": {
        "hidden": 64,
        "heads": 4,
        "landmarks": 16,
        "square": "ppeg",
        "projection_dropout": 0.25,
    },
    "iaam": {"dim": 48, "heads": 4, "rank": 8, "mlp_dim": 96},
}
LOOP = {
    "epochs": 40,
    "accumulate": 1,
    "lr": 5e-4,
    "patience": 12,
    "min_epochs": 15,
    "monitor": "val_auc",
    "tie_break": True,
}
MASK = {
    "abmil": {"high": 0.02, "random": 0.5, "high_randomness": 0.5},
    "dsmil": {"high": 0.02, "random": 0.5, "high_randomness": 0.5},
    "transmil": {"high": 0.03, "low": 0.7, "high_randomness": 0.5},
    "iaam": {"high": 0.02, "random": 0.5, "high_randomness": 0.5},
}
MOMENTUM = 0.999  # 0.9999 assumes 40,000 steps; a run here has about 4000


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--positives", type=float, nargs="+", default=[0.05, 0.4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("-o", "--out", type=Path, default=Path("digits.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(args.out.read_text()) if args.out.is_file() else []
    for share in args.positives:
        for method in args.methods:
            for seed in range(args.seeds):
                key = {"method": method, "positives": share, "seed": seed}
                key |= {"size": args.size, "noise": args.noise}
                if any(key.items() <= row.items() for row in rows):
                    continue
                rows.append(key | one(method, share, seed, args))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                args.out.write_text(json.dumps(rows, indent=1))
    asked = {"size": args.size, "noise": args.noise}
    print(table([row for row in rows if asked.items() <= row.items()]))
    return 0


def one(method: str, share: float, seed: int, args: argparse.Namespace) -> dict:
    """Plain and MHIM on one draw."""
    draw = DigitBagSpec(
        positives=share, size=args.size, spread=args.size // 5, noise=args.noise
    )
    train, val, test = digit_parts(draw, seed)
    parts = BagParts(train, val, test)
    spec = AggregatorSpec(name=method, in_dim=train.dim, args=METHODS[method])
    plain = train_plain(spec, MilSpec(**LOOP, seed=seed, xavier=True), parts)
    mask = MhimSpec(**LOOP, **MASK[method], seed=seed, momentum=MOMENTUM)
    mined = train_mhim(spec, mask, parts, plain.weights)
    return {
        "plain": plain.figures,
        "mhim": mined.figures,
        "seconds": [round(plain.seconds, 1), round(mined.seconds, 1)],
    }


def table(rows: list[dict]) -> str:
    """Markdown: bag AUC and instance AUC, plain → MHIM, and the paired difference with its standard error."""
    lines = [
        "| positives | method | bag AUC plain | MHIM | instance AUC plain | MHIM | difference (paired) |",
        "|---|---|---|---|---|---|---|",
    ]
    for share in dict.fromkeys(r["positives"] for r in rows):
        for method in dict.fromkeys(r["method"] for r in rows):
            own = [r for r in rows if (r["positives"], r["method"]) == (share, method)]
            if not own:
                continue
            value = {
                (kind, name): np.array([r[kind][name] for r in own])
                for kind in ("plain", "mhim")
                for name in ("auc", "instance_auc")
            }
            gain = value["mhim", "instance_auc"] - value["plain", "instance_auc"]
            error = (
                gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
            )
            cells = [
                f"{value[k, n].mean():.3f}"
                for n in ("auc", "instance_auc")
                for k in ("plain", "mhim")
            ]
            lines.append(
                f"| {share:.0%} | {method} | "
                + " | ".join(cells)
                + f" | {gain.mean():+.3f} ± {error:.3f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
