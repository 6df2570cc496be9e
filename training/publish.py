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

from .assemble import assemble, read_fold, state_file, story_of
from .join_folds import join_members
from .state import load_state

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from napari_msamil.config import ModelConfig
    from napari_msamil.models.msamil import MsamilModel

    from .assemble import Stored
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
    calibration = _calibration(args.calibrate)
    states = [(path, load_state(path)) for path in map(state_file, args.states)]
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
        CheckpointError: A part is missing or does not fit the configuration.
    """
    config, weights, story = _put_together(states, folds, base)
    config = config.model_copy(
        update={k: v for k, v in (shown or {}).items() if v is not None}
    )
    if not any(k.startswith("segmenter.") for k in weights):
        config = config.model_copy(update={"segmenter": None})
    found = None if learnt is None else learnt(config)
    if found is not None:
        config = config.model_copy(update={"familiarity": found.spec})
        weights |= {f"familiarity.{k}": v for k, v in found.weights.items()}
    model = build_model(config)
    _fill(model, weights)
    model.eval()
    if found is not None:
        _check_encoder(found, model)
    told = {k: v for k, v in (provenance or {}).items() if v or k not in story}
    return save_checkpoint(out, model, {**story, **told}, half=half)


def _put_together(
    states: Sequence[Stored], folds: Sequence[Path], base: str | None
) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, weights, and where they come from; a base that is only given more keeps its story."""
    if folds:
        members = [read_fold(states, fold, base) for fold in folds]
        config, weights = join_members([(str(m.path), m.parts) for m in members])
        story = story_of([*states, *(s for m in members for s in m.states)])
        return config, weights, {**story, "members": [m.path.name for m in members]}
    config, weights = assemble(states, base)
    if base is None or states:
        return config, weights, story_of(states)
    told = read_header(resolve_model(base)).provenance
    return config, weights, {k: v for k, v in told.items() if k not in _OF_A_FILE}


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


def _calibration(paths: Sequence[Path] | None) -> dict[str, Any]:
    """From the validation slides of all tables together; each was predicted by a training that did not learn from it."""
    if not paths:
        return {}
    from .calibration import calibrate
    from .prediction_table import join_predictions, read_predictions

    parts = [read_predictions(path).part("val") for path in paths]
    return calibrate(join_predictions(parts)).as_dict()


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
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.") from error
    return found


def _check_encoder(found: Learnt, model: MsamilModel) -> None:
    """Raise unless the bags were made by the encoder that is published (of several, by the first)."""
    from napari_msamil.encoding import weights_hash

    members = getattr(model.encoder, "members", [model.encoder])
    own = weights_hash(members[0], model.config.encoder)
    if not found.encoder_id.startswith(own):
        raise CheckpointError(
            "The bags were made by another encoder than the one that is published, so their distances mean nothing. "
            "Extract them with this model, published once without --bags."
        )
