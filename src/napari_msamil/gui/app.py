"""Opens napari with the workbench docked: what `msamil view` and `msamil demo` call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.gui.settings import PLUGIN
from napari_msamil.gui.strings import TITLE

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_msamil.gui.workbench import WorkbenchWidget


def open_workbench(
    slide: Path | str | None = None,
    model: str | None = None,
    result: Path | str | None = None,
    *,
    mpp: float | None = None,
    classify: bool = False,
    show: bool = True,
) -> tuple[Viewer, WorkbenchWidget]:
    """A viewer with the workbench docked.

    Args:
        slide: Opened where given.
        model: Model reference; None keeps the default.
        result: Result folder to show on the slide.
        mpp: µm per pixel, where the slide has none or a wrong one.
        classify: Whether to classify at once.
        show: Whether the window is shown.

    Raises:
        MsamilError: The slide, the model or the result cannot be opened.
    """
    import napari
    from napari.layers import Layer

    from napari_msamil.gui.layers import slide_layer
    from napari_msamil.slide import open_slide

    viewer = napari.Viewer(title="napari · MSA-MIL", show=show)
    _, bench = viewer.window.add_plugin_dock_widget(PLUGIN, TITLE.workbench)
    if model is not None:
        bench.session.set_model(model)
    if slide is not None:
        layer = slide_layer(open_slide(Path(slide), mpp=mpp))
        viewer.add_layer(Layer.create(*layer))
        viewer.reset_view()
    if result is not None:
        bench.show_result_folder(Path(result))
    if classify:
        bench.classify_panel.classify()
    return viewer, bench


def launch(
    slide: Path | str | None = None,
    model: str | None = None,
    result: Path | str | None = None,
    *,
    mpp: float | None = None,
    classify: bool = False,
) -> int:
    """Open napari with the workbench and run until it is closed; returns an exit code.

    Args:
        slide, model, result, mpp, classify: As for `open_workbench`.
    """
    import napari

    open_workbench(slide, model, result, mpp=mpp, classify=classify)
    napari.run()
    return 0
