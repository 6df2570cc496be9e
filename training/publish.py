"""Make a checkpoint from training states: the one thing that training hands over to the plugin.

Give the states in order; a later one replaces the parts it holds. `e2e` holds encoder and aggregator, `mil` and
`mhim` the aggregator, `dino` the encoder, `segment` the lesion segmenter. A folder stands for its best.pt (or
state.pt).

    msamil-train publish runs/segment runs/e2e runs/mil -o model.safetensors --data "my cohort"
    msamil-train publish --base encoder.safetensors --folds runs/cv/fold_* -o ensemble.safetensors

`--folds` joins the folds of a cross-validation: each is the training of an aggregator (or `e2e`: encoder too) on top of
the other states, or a checkpoint. `--calibrate` learns temperature and class sets from validation predictions,
`--bags` from when on a slide is unlike the training data: see docs/cohorts.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint import (
    read_header,
    resolve_model,
    save_checkpoint,
    sha256_of,
)
from napari_msamil.errors import CheckpointError
from napari_msamil.models import build_model

from .assemble import (
    assemble,
    head_of,
    made_by,
    read_fold,
    state_file,
    story_of,
)
from .join_folds import join_members
from .state import BEST, LAST, load_state

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from napari_msamil.config import ModelConfig
    from napari_msamil.models.msamil import MsamilModel

    from .assemble import Head, Stored
    from .familiar import Learnt


_OF_A_FILE = ("created", "software", "reference")
"""Parts of the provenance that `save_checkpoint` writes anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train publish`."""
    parser.add_argument(
        "states", nargs="*", type=Path, help="training folders or state files, in order"
    )
    parser.add_argument(
        "--folds",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLD",
        help="join these: folders or state files of folds, or checkpoints",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="….safetensors")
    parser.add_argument(
        "--base", help="checkpoint, hf://… or demo, whose other parts are kept"
    )
    _add_story(parser)
    parser.add_argument(
        "--half", action="store_true", help="store weights as float16 (half the size)"
    )

    parser.add_argument(
        "--calibrate",
        type=Path,
        nargs="+",
        metavar="CSV",
        help="predictions.csv of the last training, or of all folds: their validation slides give temperature and class sets",
    )
    _add_familiarity(parser)
    parser.add_argument(
        "--card", action="store_true", help="write a model card, README.md, beside it"
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="also upload file and card to the Hugging Face hub",
    )


def _add_story(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="name shown to users (default: the recipe's)")
    parser.add_argument("--description", help="one or two sentences for users")
    parser.add_argument("--licence", help="licence of the weights")
    parser.add_argument(
        "--data", default="", help="what it was trained on; 'synthetic' shows a warning"
    )
    parser.add_argument(
        "--metrics", type=Path, help="JSON of held-out figures, stored in the file"
    )


def _add_familiarity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bags",
        type=Path,
        metavar="DIR",
        help="features of --cohort with the encoder published here (with --folds of own encoders: the first one): its "
        "training and validation slides, of all folds, say from when on a slide is unlike them, or has too little tissue",
    )
    parser.add_argument("--cohort", type=Path, help="cohort table of these bags")
    parser.add_argument(
        "--splits", type=Path, help="split file, where the table has none"
    )
    parser.add_argument(
        "--fold",
        type=int,
        help="its fold whose training slides the encoder saw (default: all, for an encoder that saw none)",
    )


def run(args: argparse.Namespace) -> int:
    """Publish as the arguments say."""
    states = [(path, load_state(path)) for path in map(state_file, args.states)]
    calibration = _calibration(args, states)
    path = publish(
        states,
        args.out,
        base=args.base,
        folds=args.folds,
        learnt=_familiarity(args),
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
    states: Sequence[Stored],
    out: Path,
    *,
    base: str | None = None,
    folds: Sequence[Path] = (),
    learnt: Callable[[ModelConfig], Learnt] | None = None,
    half: bool = False,
    shown: Mapping[str, str | float | None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Put the parts together, check that each is there, and write the checkpoint.

    Args:
        states: Files and their states, in order.
        out: The checkpoint.
        base: A checkpoint whose parts are used where no state has them.
        folds: Folders, states or checkpoints of folds that are joined.
        learnt: Gives the limits of familiarity of a configuration; None: it gets none.
        half: Store weights as float16.
        shown: Texts that users see, and the temperature, by field of `ModelConfig`; None keeps the recipe's.
        provenance: More of where it comes from; what is empty does not hide what a base says that is only given more.

    Raises:
        CheckpointError: A part is missing or does not fit the configuration, or an aggregator was trained on features
            of another encoder.
    """
    given = {k: v for k, v in (shown or {}).items() if v is not None}
    config, weights, story, heads = _put_together(
        states, folds, base, calibrated="temperature" in given
    )
    config = config.model_copy(update=given)
    if not any(k.startswith("segmenter.") for k in weights):
        config = config.model_copy(update={"segmenter": None})
    found = None if learnt is None else learnt(config)
    if found is not None:
        config = config.model_copy(update={"familiarity": found.spec})
        weights |= {f"familiarity.{k}": v for k, v in found.weights.items()}
    model = build_model(config)
    _fill(model, weights)
    model.eval()
    _check_heads(heads, model)
    if found is not None:
        _check_encoder(found, model)
    told = {k: v for k, v in (provenance or {}).items() if v or k not in story}
    return save_checkpoint(out, model, {**story, **told}, half=half)


def _put_together(
    states: Sequence[Stored],
    folds: Sequence[Path],
    base: str | None,
    *,
    calibrated: bool,
) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any], list[Head | None]]:
    """Configuration, weights, where they come from (a base that is only given more keeps its story), heads of the members."""
    if folds:
        members = [read_fold(states, fold, base) for fold in folds]
        named = [(str(m.path), m.parts) for m in members]
        config, weights = join_members(named, calibrated=calibrated)
        story = story_of([*states, *(s for m in members for s in m.states)])
        heads = [
            head_of([*states, *m.states], base) if m.states else None for m in members
        ]
        names = [m.path.name for m in members]
        return config, weights, {**story, "members": names}, heads
    config, weights = assemble(states, base)
    if base is None or states:
        return config, weights, story_of(states), [head_of(states, base)]
    told = read_header(resolve_model(base)).provenance
    story = {k: v for k, v in told.items() if k not in _OF_A_FILE}
    return config, weights, story, []


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


def _calibration(args: argparse.Namespace, states: Sequence[Stored]) -> dict[str, Any]:
    """From the validation slides of all tables together; each was predicted by a training that did not learn from it."""
    paths: Sequence[Path] | None = args.calibrate
    if not paths:
        return {}
    from .calibration import calibrate
    from .prediction_table import join_predictions, read_predictions

    made_at, ensemble = _made_at(args, states, paths)
    if ensemble:
        print(  # noqa: T201
            f"note: the temperature stays {made_at:g}: that of an ensemble is learnt from the predictions of its folds' trainings.",
            file=sys.stderr,
        )
    parts = [read_predictions(path).part("val") for path in paths]
    found = join_predictions(parts)
    return calibrate(found, made_at=made_at, refit=not ensemble).as_dict()


def _made_at(
    args: argparse.Namespace, states: Sequence[Stored], paths: Sequence[Path]
) -> tuple[float, bool]:
    """Temperature that the predictions were made with, and whether they are means of an ensemble.

    A training predicts without a temperature, a checkpoint with its own.

    Raises:
        CheckpointError: The predictions, or the checkpoints that made them, differ in it.
    """
    beside = [any((p.parent / n).is_file() for n in (BEST, LAST)) for p in paths]
    refs = [str(fold) for fold in args.folds if fold.suffix == ".safetensors"]
    if not args.folds and args.base and all(s["kind"] == "segment" for _, s in states):
        refs = [args.base]
    if all(beside):
        refs = []
    configs = [read_header(resolve_model(ref)).config for ref in refs]
    found = {c.temperature for c in configs}
    if any(beside) or len(refs) < len(args.folds) or not refs:
        found.add(1.0)
    if len(found) > 1:
        told = ", ".join(f"{t:g}" for t in sorted(found))
        raise CheckpointError(
            f"The predictions of --calibrate were made at different temperatures ({told}), so they cannot be joined. Give "
            "those of the trainings, or of one checkpoint."
        )
    return found.pop(), any(c.ensemble is not None for c in configs)


def _familiarity(args: argparse.Namespace) -> Callable[[ModelConfig], Learnt] | None:
    """How the limits are learnt once the configuration stands; None where no bags were given."""
    if args.bags is None:
        return None
    if args.cohort is None:
        raise CheckpointError(
            "--bags needs --cohort: which of them are for training and validation."
        )
    from .cohort import read_cohort
    from .familiar import learn_familiarity
    from .splits import read_splits

    numbers: Sequence[int | None] = [args.fold]
    if args.splits and args.fold is None:
        numbers = range(len(read_splits(args.splits).folds))
    cohorts = [
        read_cohort(args.cohort, splits=args.splits, fold=n, need_files=False)
        for n in numbers
    ]

    def learn(config: ModelConfig) -> Learnt:
        own = config.ensemble is not None and config.ensemble.own_encoders
        if own and len(cohorts) > 1:
            raise CheckpointError(
                "Each fold has an encoder of its own, so --bags are of the first one: give its --fold."
            )
        return learn_familiarity(
            cohorts, args.bags, [s.name for s in config.patches.scales]
        )

    return learn


def _read_metrics(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.") from error
    from .cards import checked_figures

    return checked_figures(found, path)


def _hashes(model: MsamilModel) -> list[str]:
    """Of the encoder, or of each member's own."""
    from napari_msamil.encoding import weights_hash

    members = getattr(model.encoder, "members", [model.encoder])
    return [weights_hash(member, model.config.encoder) for member in members]


def _check_heads(heads: Sequence[Head | None], model: MsamilModel) -> None:
    """Raise unless each aggregator was trained on features of the encoder it gets; say where that cannot be known."""
    own = _hashes(model)
    foreign: dict[str, Path] = {}
    for number, head in enumerate(heads):
        if head is None:
            continue
        weights = own[number % len(own)]
        made = made_by(head.encoder_id, weights)
        if made is False:
            raise CheckpointError(
                f"{head.path} was trained on features of the encoder {head.encoder_id}, but {head.over} holds the encoder "
                f"{weights}, so they do not go together. Publish it with the state or the --base that made its features."
            )
        if made is None:
            foreign[head.encoder_id] = head.path
    _check_foreign(foreign, heads)


def _check_foreign(foreign: Mapping[str, Path], heads: Sequence[Head | None]) -> None:
    """Raise where some heads name another maker of their features than the others."""
    named = {h.encoder_id: h.path for h in heads if h and h.encoder_id != "unknown"}
    if len(named) > 1 and foreign.keys() & named.keys():
        told = ", ".join(f"{path}: {name}" for name, path in named.items())
        raise CheckpointError(
            f"The folds were trained on features of different encoders ({told}). Join folds that were trained on the same bags."
        )
    for name, path in foreign.items():
        print(  # noqa: T201
            f"note: the features that {path} was trained on were made by {name!r}, which cannot be compared with the encoder "
            "published here. Make sure that this encoder made them.",
            file=sys.stderr,
        )


def _check_encoder(found: Learnt, model: MsamilModel) -> None:
    """Raise unless the bags were made by the encoder that is published (of several, by the first)."""
    if not made_by(found.encoder_id, _hashes(model)[0]):
        raise CheckpointError(
            "The bags were made by another encoder than the one that is published, so their distances mean nothing. "
            "Extract them with this model, published once without --bags."
        )
