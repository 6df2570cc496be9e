"""Opens napari with the workbench docked: what `msamil view` and `msamil demo` call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.errors import MsamilError
from napari_msamil.gui.settings import PLUGIN
from napari_msamil.gui.strings import RUN, TITLE

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_msamil.gui.session import Session
    from napari_msamil.gui.workbench import WorkbenchWidget


def open_workbench(
    slide: Path | str | None = None,
    model: str | None = None,
    result: Path | str | None = None,
    *,
    mpp: float | None = None,
    backend: str = "auto",
    classify: bool = False,
    show: bool = True,
) -> tuple[Viewer, WorkbenchWidget]:
    """A viewer with the workbench docked.

    Args:
        slide: Opened where given.
        model: Model reference; None keeps the default.
        result: Result folder to show on the slide.
        mpp: µm per pixel, where the slide has none or a wrong one.
        backend: Who decodes tiles, as in `open_slide`.
        classify: Whether to classify at once.
        show: Whether the window is shown.

    Raises:
        MsamilError: The slide, the model or the result cannot be opened.
    """
    import napari

    viewer = napari.Viewer(title="napari · MSA-MIL", show=show)
    _, bench = viewer.window.add_plugin_dock_widget(PLUGIN, TITLE.workbench)
    if model is not None:
        bench.session.set_model(model)
    if slide is not None:
        show_slide(viewer, Path(slide), mpp, backend=backend)
    if result is not None:
        show_result(bench.session, Path(result))
    if classify:
        bench.classify_panel.classify()
    return viewer, bench


def show_slide(
    viewer: Viewer,
    path: Path,
    mpp: float | None = None,
    result: Path | None = None,
    *,
    backend: str = "auto",
) -> None:
    """Open a slide in a viewer, in place of the one it shows, with a stored answer if one is given.

    Args:
        viewer: Where to.
        path: The slide.
        mpp: µm per pixel, where the slide has none or a wrong one.
        result: Its result folder.
        backend: Who decodes tiles, as in `open_slide`.

    Raises:
        MsamilError: The slide or the result cannot be opened.
    """
    from napari.layers import Layer

    from napari_msamil.gui.canvas import drop_layers
    from napari_msamil.gui.layers import KEY, slide_layer
    from napari_msamil.gui.session import session_of
    from napari_msamil.slide import open_slide

    session = session_of(viewer)
    slide = open_slide(path, mpp=mpp, backend=backend)
    drop_layers(viewer, "slide")
    layer = viewer.add_layer(Layer.create(*slide_layer(slide)))
    session.set_slide(layer.metadata[KEY]["slide"], layer)
    viewer.reset_view()
    if result is not None:
        show_result(session, result)


def show_result(session: Session, folder: Path) -> None:
    """Show a stored answer on the session's slide.

    Raises:
        MsamilError: The folder holds no answer for this slide.
    """
    from napari_msamil.gui.stored import read_result_folder

    if session.slide is None or session.spec is None:
        raise MsamilError(RUN.no_slide)
    stored = read_result_folder(folder, session.slide.info, session.spec)
    session.set_mask(stored.mask)
    session.set_result(stored)


def launch(
    slide: Path | str | None = None,
    model: str | None = None,
    result: Path | str | None = None,
    *,
    mpp: float | None = None,
    backend: str = "auto",
    classify: bool = False,
) -> int:
    """Open napari with the workbench and run until it is closed.

    Args:
        slide: As for `open_workbench`, like all that follow.
        model: Model reference.
        result: Result folder.
        mpp: µm per pixel.
        backend: Who decodes tiles.
        classify: Whether to classify at once.

    Returns:
        Exit code.
    """
    import napari

    open_workbench(slide, model, result, mpp=mpp, backend=backend, classify=classify)
    napari.run()
    return 0
