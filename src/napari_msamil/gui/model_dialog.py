"""The card of a checkpoint: what it is, what it is for, and whether it works on this computer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QDialog, QFormLayout, QLabel, QVBoxLayout, QWidget

from napari_msamil.gui.buttons import button
from napari_msamil.gui.model_panel import fit, scale_text
from napari_msamil.gui.section import note
from napari_msamil.gui.settings import read_settings
from napari_msamil.gui.strings import MODEL
from napari_msamil.gui.work import selftest_steps
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from napari_msamil.checkpoint import CheckpointHeader, SelftestResult
    from napari_msamil.gui.session import Session
    from napari_msamil.slide.base import Slide


class ModelDialog(QDialog):
    """Model card and self-test."""

    def __init__(self, session: Session, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._session = session
        self._runner = Runner()
        self.setWindowTitle(MODEL.dialog)
        self.setMinimumWidth(520)
        column = QVBoxLayout(self)
        form = QFormLayout()
        form.setHorizontalSpacing(16)
        header = session.header
        if header is not None:
            for name, text in card(header, session.slide):
                title = QLabel(name)
                title.setStyleSheet("font-weight: bold;")
                form.addRow(title, note(text))
        column.addLayout(form)
        self.verdict = note()
        self._test = button(MODEL.selftest, MODEL.details_tip, self.run_selftest)
        tested = bool(header and header.provenance.get("reference"))
        self._test.setEnabled(tested)
        if not tested:
            self.verdict.setText(MODEL.untested)
        column.addWidget(self.verdict)
        column.addWidget(self._test)

    def run_selftest(self) -> None:
        """Compare recorded logits with those found here."""
        session = self._session
        self._test.setEnabled(False)
        self.verdict.setText(MODEL.selftest_running)
        steps = selftest_steps(session.model_ref, session.loaded, read_settings())
        self._runner.start(steps, on_done=self._show, on_failed=self._on_failed)

    def _show(self, found: SelftestResult) -> None:
        text = MODEL.selftest_ok if found.ok else MODEL.selftest_bad
        self.verdict.setText(text.format(diff=found.max_abs_diff))
        self._test.setEnabled(True)

    def _on_failed(self, message: str) -> None:
        self.verdict.setText(message)
        self._test.setEnabled(True)

    def done(self, result: int) -> None:
        """The dialog closes: stop listening."""
        self._runner.cancel()
        super().done(result)


def card(header: CheckpointHeader, slide: Slide | None) -> list[tuple[str, str]]:
    """Titles and texts of a model card; what the file does not say is left out."""
    config, provenance = header.config, header.provenance
    rows = [
        ("Name", config.name),
        ("What it is", config.description),
        ("Intended use", config.intended_use),
        ("Licence", config.licence),
        ("Classes", ", ".join(config.classes)),
        ("Scales", scale_text(config)),
        ("Patches", _patch_text(header)),
        ("Encoder", f"{config.encoder.backbone} ({config.encoder.kind}, {config.encoder.dim} values)"),
        ("Aggregator", config.aggregator.name),
        ("Lesion segmenter", config.segmenter.encoder if config.segmenter else MODEL.no_segmenter),
        ("Weights", f"{header.parameters:,}" if header.parameters else ""),
        ("Trained on", str(provenance.get("data") or "")),
        ("Metrics", _metrics_text(provenance.get("metrics"))),
        (MODEL.fits, fit(config, slide)[1]),
    ]  # fmt: skip
    return [(title, text) for title, text in rows if text]


def _patch_text(header: CheckpointHeader) -> str:
    patches = header.config.patches
    return f"{patches.strategy}, lesion share above {patches.lesion_threshold:g}, {patches.resampler} resampling"


def _metrics_text(metrics: Any) -> str:
    """Numbers of a metrics table, nested ones by their path."""
    if not isinstance(metrics, dict):
        return ""
    parts = []
    for name, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            parts.append(f"{name} {value:.3g}")
        elif isinstance(value, list) and len(value) in (2, 3) and name != "logits":
            numbers = [v for v in value if isinstance(v, int | float)]
            parts.append(f"{name} " + " … ".join(f"{v:.3g}" for v in numbers))
    return ", ".join(parts[:12])
