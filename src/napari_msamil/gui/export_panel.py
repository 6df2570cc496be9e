"""Everything the engine writes, one button each; written beside the window."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QFileDialog, QGridLayout

from napari_msamil.errors import MsamilError
from napari_msamil.gui.buttons import button
from napari_msamil.gui.command import results_folder
from napari_msamil.gui.section import Panel, State, note
from napari_msamil.gui.strings import EXPORT, TITLE
from napari_msamil.gui.worker import Runner
from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from napari_msamil.gui.session import Session
    from napari_msamil.progress import ProgressGen
    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide

_FILES = {
    "geojson": (EXPORT.geojson, "annotations.geojson"),
    "csv": (EXPORT.csv, "patches.csv"),
    "png": (EXPORT.picture, "overview.png"),
    "zarr": (EXPORT.zarr, "heatmap.ome.zarr"),
    "html": (EXPORT.report, "report.html"),
}


class ExportPanel(Panel):
    """Files other programs open."""

    title = TITLE.export
    starts_open = False

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._runner = Runner()
        self._folder = button(EXPORT.folder, EXPORT.folder_tip, self._on_folder)
        self._buttons = [self._folder]
        grid = QGridLayout()
        grid.addWidget(self._folder, 0, 0)
        for position, (kind, (text, name)) in enumerate(_FILES.items(), start=1):
            made = button(text, text, partial(self._on_file, kind, name))
            self._buttons.append(made)
            grid.addWidget(made, position // 2, position % 2)
        self._facts = note()
        self.column.addLayout(grid)
        self.column.addWidget(self._facts)
        session.result_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Only a complete or partial answer can be written."""
        for made in self._buttons:
            made.setEnabled(self.session.result is not None)

    def _on_folder(self) -> None:
        start = str(results_folder().parent)
        name = QFileDialog.getExistingDirectory(self, EXPORT.folder, start)
        result = self.session.result
        if name and result is not None:
            self.write("folder", Path(name) / result.info.name)

    def _on_file(self, kind: str, name: str) -> None:
        start = str(results_folder().parent / name)
        chosen, _ = QFileDialog.getSaveFileName(self, _FILES[kind][0], start)
        if chosen:
            self.write(kind, Path(chosen))

    def write(self, kind: str, path: Path) -> None:
        """Write one file, or the whole folder."""
        result, slide = self.session.result, self.session.slide
        if result is None or slide is None:
            return
        self.sum_up("…", State.RUNNING)
        self._runner.start(
            write_steps(kind, result, slide, path),
            on_done=self._on_written,
            on_failed=self._on_failed,
        )

    def _on_written(self, path: Path) -> None:
        self._facts.setText(EXPORT.written.format(path=path))
        self.sum_up(path.name, State.DONE)

    def _on_failed(self, message: str) -> None:
        self._facts.setText(message)
        self.sum_up("", State.ERROR)


def write_steps(
    kind: str, result: SlideResult, slide: Slide, path: Path
) -> ProgressGen[Path]:
    """Write `folder`, `geojson`, `csv`, `png`, `zarr` or `html`.

    Raises:
        MsamilError: The file cannot be written.
    """
    from napari_msamil import export
    from napari_msamil.report import write_report

    yield Progress(Stage.EXPORT)
    try:
        if kind == "folder":
            export.write_result(result, path, slide)
        elif kind == "png":
            export.write_overview(result, path, slide)
        elif kind == "html":
            write_report(result, path, slide)
        elif kind == "geojson":
            export.write_annotations(result, path)
        elif kind == "csv":
            export.write_patches_csv(result, path)
        else:
            export.write_heatmap_zarr(result, path)
    except OSError as error:
        raise MsamilError(
            f"{path} cannot be written: {error.strerror or error}. Choose another place."
        ) from error
    return path
