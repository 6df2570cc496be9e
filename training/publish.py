"""Make a checkpoint from training states: the one thing that training hands over to the plugin.

Give the states in order; a later one replaces the parts it holds. `e2e` holds encoder and aggregator, `mil` and
`mhim` the aggregator, `dino` the encoder, `segment` the lesion segmenter. A folder stands for its best.pt (or
state.pt).

    msamil-train publish runs/segment runs/e2e runs/mil -o model.safetensors --data "my cohort"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint import load_checkpoint, save_checkpoint, sha256_of
from napari_msamil.config import ModelConfig, SegmenterSpec
from napari_msamil.errors import CheckpointError
from napari_msamil.models import build_model

from .state import BEST, LAST, load_state

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from torch import Tensor

PARTS_OF = {
    "e2e": ("encoder", "aggregator"),
    "mil": ("aggregator",),
    "mhim": ("aggregator",),
    "dino": ("encoder",),
    "segment": ("segmenter",),
}
"""Which parts of a model each verb trains."""
_PREFIXES = {"mhim": ("student.",), "dino": ("student.encoder.", "encoder.")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train publish`."""
    parser.add_argument(
        "states", nargs="+", type=Path, help="training folders or state files, in order"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="….safetensors")
    parser.add_argument(
        "--base", type=Path, help="checkpoint whose other parts are kept"
    )
    parser.add_argument("--name", help="name shown to users (default: the recipe's)")
    parser.add_argument("--description", help="one or two sentences for users")
    parser.add_argument("--licence", help="licence of the weights")
    parser.add_argument(
        "--data", default="", help="what it was trained on; 'synthetic' shows a warning"
    )
    parser.add_argument(
        "--metrics", type=Path, help="JSON of held-out figures, stored in the file"
    )
    parser.add_argument(
        "--half", action="store_true", help="store weights as float16 (half the size)"
    )

    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="CSV",
        help="predictions.csv of the last training: its validation slides give temperature and class sets",
    )
    parser.add_argument(
        "--card", action="store_true", help="write a model card, README.md, beside it"
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="also upload file and card to the Hugging Face hub",
    )


def run(args: argparse.Namespace) -> int:
    """Publish as the arguments say."""
    calibration = _calibration(args.calibrate)
    states = [(path, load_state(path)) for path in map(state_file, args.states)]
    path = publish(
        states,
        args.out,
        base=args.base,
        half=args.half,
        shown={
            "name": args.name,
            "description": args.description,
            "licence": args.licence,
            "temperature": calibration.get("temperature"),
        },
        provenance={
            "data": args.data,
            "synthetic": "synthetic" in args.data.lower(),
            "metrics": _read_metrics(args.metrics),
            "calibration": calibration,
            "command": " ".join(["msamil-train", *sys.argv[1:]]),
        },
    )
    size = path.stat().st_size / 1e6
    print(f"{path} ({size:.2f} MB, sha256 {sha256_of(path)[:12]})")  # noqa: T201
    if args.card or args.push:
        from .cards import push, write_card

        card = write_card(path)
        print(card)  # noqa: T201
        if args.push:
            print(push(path, args.push, card))  # noqa: T201
    return 0


def publish(
    states: Sequence[tuple[Path, Mapping[str, Any]]],
    out: Path,
    *,
    base: Path | None = None,
    half: bool = False,
    shown: Mapping[str, str | float | None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Put the parts together, check that each is there, and write the checkpoint.

    Args:
        states: Files and their states, in order.
        out: The checkpoint.
        base: A checkpoint whose parts are used where no state has them.
        half: Store weights as float16.
        shown: Texts that users see, and the temperature, by field of `ModelConfig`; None keeps the recipe's.
        provenance: More of where it comes from.

    Raises:
        CheckpointError: A part is missing or does not fit the configuration.
    """
    weights: dict[str, Tensor] = {}
    config = None
    if base is not None:
        loaded = load_checkpoint(base)
        config, weights = loaded.config, dict(loaded.model.state_dict())
    for path, state in states:
        for part in _parts(path, state):
            weights = {k: v for k, v in weights.items() if not k.startswith(part + ".")}
            weights |= {f"{part}.{k}": v for k, v in _part_weights(state, part).items()}
    config = _config_of(config, states)
    config = config.model_copy(
        update={k: v for k, v in (shown or {}).items() if v is not None}
    )
    if not any(k.startswith("segmenter.") for k in weights):
        config = config.model_copy(update={"segmenter": None})
    model = build_model(config)
    _fill(model, weights)
    model.eval()
    story = {**_story(states), **(provenance or {})}
    return save_checkpoint(out, model, story, half=half)


def state_file(path: Path) -> Path:
    """The state of a training folder: its best, else its last; a file stands for itself.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} holds neither {BEST} nor {LAST}. Give the output folder of a training."
    )


def _config_of(
    config: ModelConfig | None, states: Sequence[tuple[Path, Mapping[str, Any]]]
) -> ModelConfig:
    """The configuration of all states together: each decides about the parts it holds.

    Raises:
        CheckpointError: No state says what model it belongs to.
    """
    for _, state in states:
        if state["kind"] != "segment" and "model" in state["description"]:
            own = ModelConfig.model_validate_json(state["description"]["model"])
            kept = {} if config is None else _kept(config, own, state["kind"])
            config = own.model_copy(update=kept)
    if config is None:
        raise CheckpointError(
            "None of the states says what model it belongs to. Give an e2e or mil state, or --base."
        )
    for _, state in states:
        segmenter = _as_dict(state["description"].get("segmenter"))
        if state["kind"] == "segment" and segmenter is not None:
            spec = SegmenterSpec.model_validate(segmenter)
            config = config.model_copy(update={"segmenter": spec})
    return config


def _kept(old: ModelConfig, own: ModelConfig, kind: str) -> dict[str, Any]:
    """The parts of an older configuration that a state of this kind does not train."""
    parts = {
        "encoder": old.encoder,
        "aggregator": old.aggregator,
        "segmenter": old.segmenter,
    }
    return {k: v for k, v in parts.items() if k not in PARTS_OF[kind]}


def _as_dict(value: Any) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (
        json.loads(value) if isinstance(value, str) else value
    )
    return found


def _parts(path: Path, state: Mapping[str, Any]) -> tuple[str, ...]:
    if state["kind"] not in PARTS_OF:
        raise CheckpointError(
            f"{path} was made by {state['kind']!r}, which holds no part of a model."
        )
    return PARTS_OF[state["kind"]]


def _part_weights(state: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """The weights of one part without its prefix."""
    weights: dict[str, Tensor] = dict(state["model"])
    for prefix in (*_PREFIXES.get(state["kind"], ()), f"{part}."):
        found = {
            k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)
        }
        if found:
            return found
    return weights


def _fill(model: Any, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    missing = sorted({k.partition(".")[0] for k in own.keys() - weights.keys()})
    if missing:
        raise CheckpointError(
            f"No state holds the weights of: {', '.join(missing)}. Add the training that made them, or --base."
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"The states do not belong together: {str(error)[:300]}. Publish states of one recipe."
        ) from error


def _story(states: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, Any]:
    """Where the weights come from, one entry per state."""
    stages = []
    for path, state in states:
        about, at = state["description"], state["position"]
        stages.append(
            {
                "verb": state["kind"],
                "folder": path.parent.name,
                "epoch": at.get("best_epoch") if path.name == BEST else at.get("epoch"),
                "seconds": round(float(at.get("seconds", 0.0)), 1),
                "validation": state.get("metrics", {}),
                "settings": _as_dict(about.get("settings")),
                "data_hash": about.get("data_hash"),
            }
        )
    return {"recipe": stages, "data_hash": stages[-1]["data_hash"]}


def _calibration(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from .calibration import calibrate
    from .prediction_table import read_predictions

    return calibrate(read_predictions(path).part("val")).as_dict()


def _read_metrics(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.") from error
    return found
