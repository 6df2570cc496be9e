"""`msamil`: the library from the command line.

Results go to stdout or disk as plain data; progress and messages go to stderr.
Exit codes: 0 all done; 1 some slide failed; 2 the call is wrong; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil import __version__
from napari_msamil.errors import ConfigError, MsamilError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

OK, FAILED, WRONG_CALL, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else WRONG_CALL
    args.command_line = shlex.join(["msamil", *words])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return int(args.run(args))
    except ConfigError as error:
        say(f"msamil: {error}")
        return WRONG_CALL
    except MsamilError as error:
        say(f"msamil: {error}")
        return FAILED
    except KeyboardInterrupt:
        say(
            "msamil: stopped, nothing was half written; run the same command again to go on"
        )
        return STOPPED
    except BrokenPipeError:
        return OK
    except Exception:  # noqa: BLE001 - the outermost door: a person gets a sentence and the way to report it
        say(traceback.format_exc())
        say(
            "msamil: unexpected error, nothing was half written. Please report the lines above."
        )
        return FAILED


def say(text: str) -> None:
    """A message for the person at the terminal."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def answer(text: str) -> None:
    """Data asked for, on stdout."""
    sys.stdout.write(text + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; importing torch is not needed to print its help."""
    parser = argparse.ArgumentParser(
        prog="msamil",
        description="Interactive whole-slide classification with multi-scale MIL. Research only, not for diagnosis.",
    )
    parser.add_argument(
        "--version", action="version", version=f"napari-msamil {__version__}"
    )
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_view,
        _add_info,
        _add_convert,
        _add_mask,
        _add_classify,
        _add_model,
        _add_checks,
    ):
        add(commands)
    return parser


def _add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", "-m", default="demo", metavar="M",
        help="checkpoint: a path, hf://owner/name[@revision], or demo (default: the built-in demo model)",
    )  # fmt: skip


def _add_mpp_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mpp",
        type=float,
        metavar="X",
        help="µm per pixel of level 0, where the file has none or a wrong one",
    )


def _add_backend_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", choices=("auto", "direct", "openslide"), default="auto",
        help="who decodes tiles: this program where it gives the same pixels (auto), or one of both",
    )  # fmt: skip


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo", help="make the demo slide, classify it with the demo model and show why"
    )
    parser.add_argument(
        "--no-gui", action="store_true", help="write the result folder, open no window"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("msamil-demo"), metavar="DIR"
    )
    parser.set_defaults(run=run_demo)


def _add_view(commands: Commands) -> None:
    parser = commands.add_parser(
        "view", help="open a slide in napari with the workbench"
    )
    parser.add_argument("slide", type=Path, metavar="SLIDE")
    _add_model_option(parser)
    _add_mpp_option(parser)
    _add_backend_option(parser)
    parser.add_argument(
        "--result", type=Path, metavar="DIR", help="result folder to show"
    )
    parser.set_defaults(run=run_view)


def _add_info(commands: Commands) -> None:
    parser = commands.add_parser(
        "info", help="sizes, levels, pixel size and its source, warnings"
    )
    parser.add_argument("slide", type=Path, metavar="SLIDE")
    _add_mpp_option(parser)
    _add_backend_option(parser)
    parser.add_argument("--json", action="store_true", help="plain JSON")
    parser.set_defaults(run=run_info)


def _add_convert(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert", help="any big image to a tiled pyramidal TIFF"
    )
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("out", type=Path, metavar="OUT.tiff")
    parser.add_argument(
        "--mpp",
        type=float,
        required=True,
        metavar="X",
        help="µm per pixel of the image",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=90,
        metavar="Q",
        help="JPEG quality 1–100 (default 90)",
    )
    parser.set_defaults(run=run_convert)


def _add_mask(commands: Commands) -> None:
    parser = commands.add_parser("mask", help="lesion mask of a slide as GeoJSON")
    parser.add_argument("slide", type=Path, metavar="SLIDE")
    _add_model_option(parser)
    _add_mpp_option(parser)
    _add_backend_option(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="MASK.geojson"
    )
    parser.add_argument("--device", default="auto", metavar="D")
    parser.set_defaults(run=run_mask)


def _add_classify(commands: Commands) -> None:
    parser = commands.add_parser(
        "classify", help="classify slides, one result folder each"
    )
    slides = "files, DICOM folders, folders, globs, or a cohort .csv"
    parser.add_argument("slides", nargs="+", metavar="SLIDE", help=slides)
    _add_model_option(parser)
    _add_mpp_option(parser)
    _add_backend_option(parser)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR")
    mask = "mask or annotation file, or a folder of them by slide name"
    add("--mask", type=Path, metavar="F", help=mask)
    patches = "which patches (default: the model's)"
    add("--patches", choices=("lesion", "tissue", "random"), help=patches)
    threshold = "lesion share a patch must exceed (default: the model's)"
    add("--threshold", type=float, metavar="T", help=threshold)
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
    add("--precision", default="auto", metavar="P", help="auto, fp32, bf16 or fp16")
    compiled = "compile the encoder first: a wait of minutes that pays on many patches"
    add("--compile", action="store_true", help=compiled)
    workers = "slides at once on this machine"
    add("--workers", type=int, default=1, metavar="N", help=workers)
    add("--cluster", metavar="ADDRESS", help="Dask scheduler tcp://…, or local:N")
    cache = "neither read nor write the feature cache"
    add("--no-cache", action="store_true", help=cache)
    add("--report", action="store_true", help="also write report.html")
    parser.set_defaults(run=run_classify)


def _add_model(commands: Commands) -> None:
    parser = commands.add_parser("model", help="about checkpoints")
    verbs = parser.add_subparsers(dest="model_verb", required=True, metavar="VERB")
    info = verbs.add_parser("info", help="what a checkpoint is")
    info.add_argument("model", metavar="M")
    info.add_argument("--json", action="store_true", help="plain JSON")
    info.set_defaults(run=run_model_info)


def _add_checks(commands: Commands) -> None:
    selftest = commands.add_parser(
        "selftest", help="does a checkpoint give its recorded logits here"
    )
    selftest.add_argument("model", nargs="?", default="demo", metavar="M")
    selftest.add_argument("--device", default="auto", metavar="D")
    selftest.set_defaults(run=run_selftest)
    doctor = commands.add_parser("doctor", help="is this installation healthy")
    doctor.add_argument(
        "slide",
        nargs="?",
        type=Path,
        metavar="SLIDE",
        help="slide for the reader benchmark",
    )
    doctor.set_defaults(run=run_doctor)


def run_info(args: argparse.Namespace) -> int:
    """`msamil info`."""
    from napari_msamil.slide import open_slide
    from napari_msamil.slide.describe import describe_json, describe_text

    with open_slide(args.slide, mpp=args.mpp, backend=args.backend) as slide:
        if args.json:
            answer(json.dumps(describe_json(slide.info), indent=2, ensure_ascii=False))
        else:
            answer(describe_text(slide.info))
    return OK


def run_convert(args: argparse.Namespace) -> int:
    """`msamil convert`."""
    from napari_msamil.slide.convert import convert_image
    from napari_msamil.terminal import finish_with_bar

    path = finish_with_bar(
        convert_image(args.image, args.out, mpp=args.mpp, quality=args.quality),
        args.image.name,
    )
    say(f"wrote {path}")
    return OK


def run_mask(args: argparse.Namespace) -> int:
    """`msamil mask`: SFFM alone."""
    from napari_msamil.annotations import write_mask_geojson
    from napari_msamil.checkpoint import load_checkpoint
    from napari_msamil.device import choose_runtime
    from napari_msamil.pipeline import find_mask
    from napari_msamil.slide import open_slide

    runtime = choose_runtime(args.device)
    with open_slide(args.slide, mpp=args.mpp, backend=args.backend) as slide:
        mask, warnings = find_mask(
            slide, load_checkpoint(args.model, device=runtime.device), runtime
        )
    write_mask_geojson(mask, args.output)
    for warning in warnings:
        say(f"note: {warning}")
    say(f"wrote {args.output}: {mask.fraction:.1%} of the slide, by {mask.source}")
    return OK


def run_classify(args: argparse.Namespace) -> int:
    """`msamil classify`."""
    from napari_msamil.batch import BatchOptions, classify_many
    from napari_msamil.device import choose_runtime, require_compiler
    from napari_msamil.terminal import finish_batch

    if args.cluster is None:
        runtime = choose_runtime(args.device, args.precision)
        if args.compile:
            require_compiler(runtime.device, "run without --compile")
    options = BatchOptions(
        model=args.model, output=args.output, mask=args.mask, patches=args.patches, mpp=args.mpp, threshold=args.threshold,
        device=args.device, precision=args.precision, workers=args.workers, cluster=args.cluster,
        use_cache=not args.no_cache, report=args.report, backend=args.backend, compiled=args.compile,
        command=args.command_line,
    )  # fmt: skip
    summary = finish_batch(classify_many(args.slides, options))
    return OK if not summary.failed else FAILED


def run_demo(args: argparse.Namespace) -> int:
    """`msamil demo`."""
    from napari_msamil.batch import BatchOptions, classify_many
    from napari_msamil.demo import demo_slide
    from napari_msamil.terminal import finish_batch

    say("painting the demo slide (synthetic tissue)")
    path = demo_slide(args.output)
    if not args.no_gui and has_display():
        from napari_msamil.gui.app import launch

        return launch(slide=path, model="demo", classify=True)
    options = BatchOptions(
        model="demo", output=args.output, command=args.command_line, report=True
    )
    summary = finish_batch(classify_many([str(path)], options))
    if summary.failed:
        return FAILED
    say(f"look at {args.output / path.stem / 'overview.png'} and report.html beside it")
    return OK


def run_view(args: argparse.Namespace) -> int:
    """`msamil view`."""
    from napari_msamil.gui.app import launch

    if not has_display():
        raise ConfigError(
            "There is no display to open a window on. Use: msamil classify"
        )
    return launch(
        slide=args.slide, model=args.model, result=args.result, mpp=args.mpp, backend=args.backend
    )  # fmt: skip


def has_display() -> bool:
    """Whether a window can be opened: always on Windows and macOS, with DISPLAY or Wayland on Linux."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def run_model_info(args: argparse.Namespace) -> int:
    """`msamil model info`."""
    from napari_msamil.checkpoint import read_header, resolve_model
    from napari_msamil.model_card import describe_header

    header = read_header(resolve_model(args.model))
    if args.json:
        document = {
            "format_version": header.format_version,
            "config": header.config.model_dump(mode="json"),
            "provenance": header.provenance,
        }
        answer(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        answer(describe_header(header))
    return OK


def run_selftest(args: argparse.Namespace) -> int:
    """`msamil selftest`."""
    from napari_msamil.checkpoint import load_checkpoint, selftest
    from napari_msamil.device import choose_runtime

    result = selftest(
        load_checkpoint(args.model, device=choose_runtime(args.device).device)
    )
    answer(
        f"{'ok' if result.ok else 'FAILED'}: largest difference of a logit {result.max_abs_diff:.2e}"
    )
    return OK if result.ok else FAILED


def run_doctor(args: argparse.Namespace) -> int:
    """`msamil doctor`."""
    from napari_msamil.doctor import examine

    report = examine(args.slide)
    answer(report.text)
    return OK if report.healthy else FAILED
