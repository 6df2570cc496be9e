"""One family of errors. Each message says what happened, to which file, and what to do."""

from __future__ import annotations


class MsamilError(Exception):
    """Base of every error a user can cause or repair; its text is shown as it is."""


class SlideError(MsamilError):
    """A slide file cannot be opened or read."""


class ResolutionError(SlideError):
    """A slide has no plausible pixel size, or is too coarse for the scales asked for."""


class RegionError(SlideError):
    """One region of a slide cannot be decoded; the rest may be fine."""


class MaskError(MsamilError):
    """A mask or an annotation file cannot be used with this slide."""


class SelectionError(MsamilError):
    """No patch could be selected: too small, no tissue, or nothing above the threshold."""


class CheckpointError(MsamilError):
    """A model file is missing, damaged, too new, or not a checkpoint."""


class ConfigError(MsamilError):
    """A configuration, recipe or command line is wrong."""


class CohortError(MsamilError):
    """A cohort table or a split has problems; the message lists all of them."""


class StoreError(MsamilError):
    """The feature store cannot be read or written."""


class ExtraMissingError(MsamilError):
    """An optional part is not installed; the message names the extra."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs an optional part that is not installed. "
            f'Install it with: pip install "napari-msamil[{extra}]"'
        )
