"""Classic MIL data with their published 5 x 10 folds: accuracy over all folds, tuned by nested validation only.

    python benchmarks/classic_mil.py ../shared/data/mil/musk1.npz --methods abmil dsmil -o results/classic.json

For every test fold the other nine are parted into three inner validation sets; settings and number of steps are those
with the best mean inner accuracy (ties: lower loss). The chosen setting is trained anew on all nine folds with a few
seeds, whose probabilities are averaged, and predicts the test fold once. Features are standardised on training bags.
`--grid none` tunes nothing: one setting, fixed beforehand. `--hindsight` chooses nothing either: it prints what each setting
of the grid comes to on the test folds, so that one sees what choosing there would have given. Masked hard instance mining
cannot be stacked: it trains fold by fold with the fixed settings below (marked *), on `--slow-repeats` repeats and in steps of `--window` bags; `single-…` is
the plain network that it starts from. Finished lines of the output file are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.config import AggregatorSpec
from training.bag_dataset import BagDataset
from training.datasets.classic_mil import ClassicSet, read_classic_set
from training.memory_fit import fit_in_memory
from training.mhim_task import MhimSpec, MhimTask
from training.mil_task import MilSpec, MilTask, predict
from training.stacked_networks import StackedNetworks, StackedSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

Setting = tuple[StackedSettings, float, int]
Grid = tuple[Setting, ...]
LITERATURE = {"musk1": 0.892, "elephant": 0.868, "fox": 0.615}
"""AB-MIL without gate, accuracy (Ilse et al. 2018, Table 1)."""
SMALL = {"hidden": 64, "attention_dim": 32}
STACKED = {
    "abmil": ("abmil", {**SMALL, "gated": False}, "dropout"),
    "abmil-gated": ("abmil", {**SMALL, "gated": True}, "dropout"),
    "dsmil": ("dsmil", {"hidden": 64, "query_dim": 32}, "dropout"),
    "clam_sb": ("clam_sb", {**SMALL, "k": 2}, "dropout"),
    "clam_mb": ("clam_mb", {**SMALL, "k": 2}, "dropout"),
    "dtfd": ("dtfd", {**SMALL, "groups": 2}, "dropout"),
    "iaam": (
        "iaam",
        {"dim": 64, "heads": 4, "rank": 8, "mlp_dim": 64, "queries": 4},
        "dropout",
    ),
    "transmil": (
        "transmil",
        {"hidden": 32, "heads": 4, "landmarks": 4, "landmark_kind": "segments"},
        "projection_dropout",
    ),
    "mambamil": (
        "mambamil",
        {**SMALL, "hidden": 32, "layers": 1, "state": 4, "expand": 1},
        "dropout",
    ),
}
"""Name, sizes, and the argument that the tuned dropout goes to: small networks for small data."""
_FAST = (StackedSettings(3e-3, 1e-2, 0.5, (30, 60, 100)), 0.25, 1)
_CALM = (StackedSettings(1e-3, 1e-1, 0.5, (30, 60, 100)), 0.5, 1)
_WIDE = (StackedSettings(3e-3, 1e-1, 0.5, (60, 100, 200)), 0.5, 4)
GRIDS: dict[str, Grid] = {
    "none": ((StackedSettings(3e-3, 1e-2, 0.5, (60,)), 0.25, 1),),
    "small": (_FAST,),
    "large": (_FAST, _CALM),
    "wide": (_FAST, _CALM, _WIDE),
}
"""Settings of AdamW, the dropout and the factor on the widths that go with them; the number of steps is tuned too."""
_WIDTHS = ("hidden", "attention_dim", "query_dim", "mlp_dim", "dim")
SINGLE = {
    f"{kind}-{name}": STACKED[name]
    for kind in ("single", "mhim")
    for name in ("abmil", "dsmil")
} | {
    "single-milbooster": (
        "milbooster",
        {**SMALL, "scales": 1, "clusters": 5},
        "dropout",
    )
}
"""Trained one by one: the plain network, and the student of masked hard instance mining that starts from it."""
FIXED = {"optimizer": "adamw", "weight_decay": 1e-2, "patience": 0}
WINDOWS = {
    12: {**FIXED, "accumulate": 12, "epochs": 12, "lr": 2e-3},
    1: {**FIXED, "accumulate": 1, "epochs": 20, "lr": 5e-4},
}
"""Settings of the networks that are trained one by one, by the bags of a step."""
MASK = {"high": 0.1, "random": 0.2, "momentum": 0.99, "alpha": 0.1}
MEMBERS_AT_ONCE = 50
"""Bounds the memory."""


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", default=[*STACKED, *SINGLE])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, default=1)
    parser.add_argument("--window", type=int, choices=WINDOWS, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", choices=GRIDS, default="small")
    parser.add_argument("--hindsight", action="store_true")
    parser.add_argument("-o", "--out", type=Path, default=Path("classic_mil.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = [read_classic_set(path) for path in args.sets]
    if args.hindsight:
        for method, data in itertools.product(args.methods, sets):
            for line in hindsight(data, method, args):
                print(line, flush=True)
        return 0
    for method in args.methods:
        for data in sets:
            run_method(data, method, args)
    print(table([row for row in read_rows(args.out) if is_asked(row, args)]))
    return 0


def run_method(data: ClassicSet, method: str, args: argparse.Namespace) -> None:
    """All folds of the wanted repeats, unless the result file has them."""
    repeats = args.repeats if method in STACKED else args.slow_repeats
    key = {"set": data.name, "method": method, "grid": args.grid, "repeats": repeats}
    if method in STACKED:
        key["seeds"] = args.seeds
    else:
        key["window"] = args.window
    if any(key.items() <= row.items() for row in read_rows(args.out)):
        return
    start = time.process_time()
    if method in STACKED:
        row = nested(data, method, repeats, args.seeds, GRIDS[args.grid])
    else:
        row = one_by_one(data, method, repeats, WINDOWS[args.window])
    row = key | row | {"processor_seconds": round(time.process_time() - start, 1)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([*read_rows(args.out), row], indent=1))
    print(json.dumps(row), file=sys.stderr, flush=True)


def is_asked(row: dict, args: argparse.Namespace) -> bool:
    """Whether a line was made with these settings: others are not averaged with it."""
    if row["method"] not in STACKED:
        wanted = {"repeats": args.slow_repeats, "window": args.window}
        return wanted.items() <= row.items()
    wanted = {"grid": args.grid, "repeats": args.repeats, "seeds": args.seeds}
    return wanted.items() <= row.items()


def read_rows(path: Path) -> list[dict]:
    """Finished repeats."""
    return json.loads(path.read_text()) if path.is_file() else []


def nested(data: ClassicSet, method: str, repeats: int, seeds: int, grid: Grid) -> dict:
    """Accuracy per test fold with settings chosen on the other folds."""
    outer = [(r, k) for r in range(repeats) for k in range(10)]
    if len(grid) == 1 and len(grid[0][0].checkpoints) == 1:
        accuracy = final(data, method, outer, seeds, grid[0])
        chosen = {"fixed": len(outer)}
        return {"folds": accuracy.tolist(), "chosen": chosen, "seeds": seeds}
    inner = [split for r, k in outer for split in inner_splits(data.folds[r], k)]
    score, loss = [], []
    for setting in grid:
        found = run_members(data, method, setting, [t for t, _ in inner], seed=1)
        judged = [judge(data, p, [v for _, v in inner]) for p in found.values()]
        score.append([a.reshape(len(outer), 3).mean(1) for a, _ in judged])
        loss.append([b.reshape(len(outer), 3).mean(1) for _, b in judged])
    rank = np.asarray(score) - 1e-3 * np.asarray(loss)
    best = rank.reshape(-1, len(outer)).argmax(0)
    steps = len(grid[0][0].checkpoints)
    accuracy = np.zeros(len(outer))
    for choice in range(len(grid) * steps):
        folds = [outer[i] for i in np.flatnonzero(best == choice)]
        if not folds:
            continue
        settings, dropout, width = grid[choice // steps]
        stop = settings.checkpoints[choice % steps]
        ending = replace(settings, checkpoints=(stop,))
        setting = (ending, dropout, width)
        accuracy[best == choice] = final(data, method, folds, seeds, setting)
    chosen = {
        _name(grid[c // steps], c % steps): int((best == c).sum())
        for c in set(best.tolist())
    }
    return {"folds": accuracy.tolist(), "chosen": chosen, "seeds": seeds}


def hindsight(data: ClassicSet, method: str, args: argparse.Namespace) -> Iterator[str]:
    """Lines with the accuracy of every setting over all test folds: nothing is chosen, so nothing is a result."""
    outer = [(r, k) for r in range(args.repeats) for k in range(10)]
    train = [data.folds[r] != k for r, k in outer for _ in range(args.seeds)]
    test = [data.folds[r] == k for r, k in outer]
    for setting in GRIDS[args.grid]:
        found = run_members(data, method, setting, train, seed=2)
        for place, p in enumerate(found.values()):
            mean = p.reshape(len(outer), args.seeds, len(data), -1).mean(1)
            accuracy = judge(data, mean, test)[0].mean()
            yield f"{data.name} {method} {_name(setting, place)}: {accuracy:.3f}"


def _name(setting: Setting, checkpoint: int) -> str:
    settings, _, width = setting
    wide = f" x{width}" if width > 1 else ""
    return f"{settings.lr}{wide}/{settings.checkpoints[checkpoint]}"


def final(
    data: ClassicSet,
    method: str,
    folds: list[tuple[int, int]],
    seeds: int,
    setting: Setting,
) -> np.ndarray:
    """Train on all bags outside each fold, average the seeds, judge the fold."""
    stop = setting[0].checkpoints[-1]
    train = [data.folds[r] != k for r, k in folds for _ in range(seeds)]
    p = run_members(data, method, setting, train, seed=2)[stop]
    p = p.reshape(len(folds), seeds, len(data), -1).mean(1)
    return judge(data, p, [data.folds[r] == k for r, k in folds])[0]


def inner_splits(folds: np.ndarray, test: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three (training, validation) pairs inside the bags outside the test fold."""
    others = [f for f in range(10) if f != test]
    pairs = []
    for part in range(3):
        val = np.isin(folds, others[part::3])
        pairs.append(((folds != test) & ~val, val))
    return pairs


def run_members(
    data: ClassicSet,
    method: str,
    setting: Setting,
    train: list[np.ndarray],
    seed: int,
) -> dict[int, np.ndarray]:
    """Probabilities (members, bags, C) after each checkpoint; members are run in chunks."""
    settings, dropout, width = setting
    name, args, dropout_name = STACKED[method]
    args = {k: v * width if k in _WIDTHS else v for k, v in args.items()}
    varied = data.features.std(0) > 0
    lengths = np.bincount(data.bag_id).tolist()
    found: dict[int, list[np.ndarray]] = {step: [] for step in settings.checkpoints}
    for first in range(0, len(train), MEMBERS_AT_ONCE):
        chunk = train[first : first + MEMBERS_AT_ONCE]
        features = torch.as_tensor(
            np.stack([data.standardised(t, drop=False)[:, varied] for t in chunk])
        )
        spec = AggregatorSpec(
            name=name,
            in_dim=features.shape[2],
            args={**args, dropout_name: dropout},
        )
        ensemble = StackedNetworks(
            spec,
            2,
            features,
            lengths,
            torch.as_tensor(data.labels),
            torch.as_tensor(np.stack(chunk)),
            seed + first,
        )
        for step, probabilities in ensemble.fit(settings).items():
            found[step].append(probabilities.numpy())
    return {step: np.concatenate(parts) for step, parts in found.items()}


def judge(
    data: ClassicSet, probabilities: np.ndarray, where: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean log loss of each member on its own bags."""
    mask = np.stack(where)
    right = probabilities.argmax(-1) == data.labels
    true = np.take_along_axis(
        probabilities, np.broadcast_to(data.labels[None, :, None], (*mask.shape, 1)), 2
    )[..., 0]
    count = mask.sum(1)
    return (right & mask).sum(1) / count, (-np.log(true + 1e-9) * mask).sum(1) / count


def one_by_one(data: ClassicSet, method: str, repeats: int, fixed: dict) -> dict:
    """Accuracy per test fold with the fixed settings, through the ordinary training tasks."""
    folds = [(r, k) for r in range(repeats) for k in range(10)]
    return {"folds": [alone(data, method, r, k, fixed) for r, k in folds]}


def alone(data: ClassicSet, method: str, repeat: int, fold: int, fixed: dict) -> float:
    """Accuracy of a plain network, or of the student that starts from it, on one test fold."""
    name, args, _ = SINGLE[method]
    train = data.folds[repeat] != fold
    bags = data.bags(data.standardised(train))
    parts = [
        BagDataset([bags[i] for i in rows], data.labels[rows].tolist())
        for rows in (np.flatnonzero(train), np.flatnonzero(~train))
    ]
    torch.manual_seed(repeat)
    spec = AggregatorSpec(
        name=name, in_dim=parts[0].dim, args={**args, "dropout": 0.25}
    )
    plain = MilTask(spec, MilSpec(**fixed), parts[0], None, ("0", "1"))
    fit_in_memory(plain, plain.settings)
    trained = plain.aggregator
    if method.startswith("mhim"):
        settings = MhimSpec(**fixed, **MASK)
        weights = trained.state_dict()
        task = MhimTask(spec, settings, parts[0], None, ("0", "1"), weights)
        fit_in_memory(task, settings)
        trained = task.aggregator
    right = predict(trained, parts[1]).argmax(1) == parts[1].labels
    return float(right.float().mean())


def table(rows: list[dict]) -> str:
    """Markdown: methods down, sets across."""
    sets = [s for s in LITERATURE if any(r["set"] == s for r in rows)]
    lines = ["| method | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    lines.append(
        "| AB-MIL, literature | "
        + " | ".join(f"{LITERATURE[s]:.3f}" for s in sets)
        + " |"
    )
    for method in [*STACKED, *SINGLE]:
        cells = []
        for name in sets:
            own = [r for r in rows if (r["set"], r["method"]) == (name, method)]
            folds = np.concatenate([r["folds"] for r in own]) if own else np.zeros(0)
            cells.append(
                f"{folds.mean():.3f} ± {folds.std(ddof=1):.3f} (n={len(folds)})"
                if own
                else "–"
            )
        if set(cells) != {"–"}:
            lines.append(
                f"| {method}{'' if method in STACKED else '*'} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
