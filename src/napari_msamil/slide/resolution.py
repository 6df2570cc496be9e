"""How many µm a level-0 pixel measures, and who says so.

Nothing is inferred silently: the pixel size carries its source, contradictions become warnings, and an implausible
value (a converter's 72 dpi reads as 352.8 µm/px) counts as none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_msamil.errors import ResolutionError
from napari_msamil.slide.base import MppSource

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAUSIBLE_MPP = (0.02, 40.0)
"""From oil immersion at 100x with oversampling to a coarse overview; both ends are far outside slide scanners."""
OBJECTIVE_MPP = {
    2.5: 4.0,
    4.0: 2.5,
    5.0: 2.0,
    10.0: 1.0,
    20.0: 0.5,
    40.0: 0.25,
    60.0: 0.167,
    63.0: 0.16,
    100.0: 0.1,
}
"""Nominal pixel size per lens; used only as the declared source `objective`, with a warning."""
SCREEN_DPI = (72.0, 96.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 1200.0, 2400.0)
"""Resolutions of screens and printers: in a generic TIFF they say nothing of the microscope."""
CONTRADICTION = 1.5
"""Pixel size and objective disagree if their ratio leaves 1/1.5 … 1.5 (a 3DHISTECH “20x” is near 0.24)."""
UM_PER_INCH, UM_PER_CM = 25_400.0, 10_000.0


@dataclass(frozen=True)
class Resolution:
    """What is known of the pixel size.

    Attributes:
        mpp_yx: µm per level-0 pixel along y and x, or None.
        source: Where it comes from, or None.
        objective_power: Nominal magnification, or None.
        warnings: Sentences for the user.
    """

    mpp_yx: tuple[float, float] | None = None
    source: MppSource | None = None
    objective_power: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def mpp(self) -> float | None:
        """Geometric mean of both axes, or None."""
        return (
            None if self.mpp_yx is None else math.sqrt(self.mpp_yx[0] * self.mpp_yx[1])
        )


def is_plausible(mpp: float) -> bool:
    """Whether a pixel size in µm can be that of a slide or its overview."""
    return math.isfinite(mpp) and PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def check_user_mpp(mpp: float) -> float:
    """A pixel size given by the user.

    Raises:
        ResolutionError: It is no plausible number of µm.
    """
    if not is_plausible(mpp):
        low, high = PLAUSIBLE_MPP
        raise ResolutionError(
            f"A pixel size of {mpp:g} µm is not plausible (it lies between {low:g} and {high:g}); "
            "scanners at 40x are usually near 0.25, at 20x near 0.5."
        )
    return mpp


def resolve(
    properties: Mapping[str, str],
    *,
    vendor: str,
    name: str,
    user_mpp: float | None = None,
) -> Resolution:
    """Find the pixel size of a slide in its properties.

    The order is: the user, vendor tags (`openslide.mpp-*`), TIFF resolution, objective power.

    Args:
        properties: OpenSlide's properties, or the same keys filled by another reader.
        vendor: OpenSlide's vendor word; for `generic-tiff` the `openslide.mpp-*` come from the TIFF resolution.
        name: File name for the warnings.
        user_mpp: The user's value; it wins over everything.

    Raises:
        ResolutionError: `user_mpp` is implausible.
    """
    power = _number(properties.get("openslide.objective-power"))
    warnings: list[str] = []
    found: tuple[float, float] | None = None
    source: MppSource | None = None
    for candidate, kind in _candidates(properties, vendor):
        doubt = _doubt(candidate, kind)
        if doubt is None:
            found, source = candidate, kind
            break
        warnings.append(
            f"{name}: the pixel size of {candidate[1]:.4g} µm in the file {doubt} and is ignored."
        )
    warnings += _contradictions(found, power, name)
    if user_mpp is not None:
        if found is not None and not _agree(
            user_mpp, math.sqrt(found[0] * found[1]), 1.1
        ):
            warnings.append(
                f"{name}: the given pixel size of {user_mpp:g} µm replaces {found[1]:.4g} µm of the file."
            )
        value = check_user_mpp(user_mpp)
        return Resolution((value, value), MppSource.USER, power, tuple(warnings))
    if found is None and power is not None and power in OBJECTIVE_MPP:
        value = OBJECTIVE_MPP[power]
        warnings.append(
            f"{name}: the file has no pixel size; {value:g} µm is assumed from its {power:g}x objective. "
            "Give the true value with --mpp."
        )
        return Resolution((value, value), MppSource.OBJECTIVE, power, tuple(warnings))
    return Resolution(found, source, power, tuple(warnings))


def tiff_mpp(resolution: float, unit: str) -> float | None:
    """µm per pixel of a TIFF resolution in pixels per `inch` or `centimeter`; None for anything else."""
    per_unit = {"inch": UM_PER_INCH, "centimeter": UM_PER_CM}.get(unit)
    if per_unit is None or not math.isfinite(resolution) or resolution <= 0:
        return None
    return per_unit / resolution


def _candidates(
    properties: Mapping[str, str], vendor: str
) -> list[tuple[tuple[float, float], MppSource]]:
    found: list[tuple[tuple[float, float], MppSource]] = []
    tag_yx = (
        _number(properties.get("openslide.mpp-y")),
        _number(properties.get("openslide.mpp-x")),
    )
    if tag_yx[0] is not None and tag_yx[1] is not None:
        kind = MppSource.TIFF if vendor == "generic-tiff" else MppSource.TAG
        found.append(((tag_yx[0], tag_yx[1]), kind))
    unit = properties.get("tiff.ResolutionUnit", "")
    per_y, per_x = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "YX")
    if per_x is not None and per_y is not None:
        mpp_y, mpp_x = tiff_mpp(per_y, unit), tiff_mpp(per_x, unit)
        if mpp_x is not None and mpp_y is not None and not found:
            found.append(((mpp_y, mpp_x), MppSource.TIFF))
    return found


def _doubt(mpp_yx: tuple[float, float], kind: MppSource) -> str | None:
    if not all(is_plausible(value) for value in mpp_yx):
        return "is not plausible"
    if max(mpp_yx) / min(mpp_yx) > 4:
        return "differs too much between the axes"
    dpi = UM_PER_INCH / mpp_yx[1]
    if kind is MppSource.TIFF and any(
        abs(dpi - screen) < 0.01 * screen for screen in SCREEN_DPI
    ):
        return f"is a screen or print resolution ({dpi:.0f} dpi)"
    return None


def _contradictions(
    mpp_yx: tuple[float, float] | None, power: float | None, name: str
) -> list[str]:
    if mpp_yx is None:
        return []
    warnings = []
    if not _agree(mpp_yx[0], mpp_yx[1], 1.02):
        warnings.append(
            f"{name}: pixels are not square ({mpp_yx[1]:.4g} × {mpp_yx[0]:.4g} µm); their mean is used."
        )
    if power is not None and power > 0:
        mean = math.sqrt(mpp_yx[0] * mpp_yx[1])
        nominal = OBJECTIVE_MPP.get(power, 10.0 / power)
        if not _agree(mean, nominal, CONTRADICTION):
            warnings.append(
                f"{name}: the pixel size of {mean:.4g} µm contradicts the {power:g}x objective (usually {nominal:g} µm). "
                "The pixel size is used; give --mpp if it is wrong."
            )
    return warnings


def _agree(a: float, b: float, ratio: float) -> bool:
    return max(a, b) <= ratio * min(a, b)


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
