"""Where the pixel size comes from."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.errors import ResolutionError
from napari_msamil.slide.resolution import is_plausible, resolve, tiff_mpp


def tags(mpp=None, power=None, resolution=None, unit="centimeter"):
    found = {}
    if mpp is not None:
        found |= {"openslide.mpp-x": str(mpp), "openslide.mpp-y": str(mpp)}
    if power is not None:
        found["openslide.objective-power"] = str(power)
    if resolution is not None:
        found |= {
            "tiff.XResolution": str(resolution),
            "tiff.YResolution": str(resolution),
            "tiff.ResolutionUnit": unit,
        }
    return found


def found(properties, vendor="aperio", mpp=None):
    return resolve(properties, vendor=vendor, name="a.svs", user_mpp=mpp)


def test_vendor_tag_wins_over_tiff_resolution_and_objective() -> None:
    result = found(tags(0.2277, 40, 20_000))
    assert (result.mpp, result.source, result.warnings) == (
        pytest.approx(0.2277),
        "tag",
        (),
    )


def test_generic_tiff_says_tiff() -> None:
    assert found(tags(0.5), vendor="generic-tiff").source == "tiff"


def test_tiff_resolution_serves_a_vendor_file_without_its_tag() -> None:
    result = found(tags(None, 20, 20_000))
    assert (result.mpp, result.source) == (pytest.approx(0.5), "tiff")
    assert found(tags(None, None, 50_800, "inch")).mpp == pytest.approx(0.5)


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200])
def test_screen_and_print_resolutions_count_as_none(dpi) -> None:
    result = found(tags(None, None, dpi, "inch"), vendor="tiff")
    assert result.mpp is None
    assert result.source is None
    assert "ignored" in result.warnings[0]


def test_objective_is_declared_and_warned_of() -> None:
    result = found(tags(None, 40))
    assert (result.mpp, result.source) == (0.25, "objective")
    assert "40x" in result.warnings[0]
    assert "--mpp" in result.warnings[0]
    assert found(tags(None, 17)).mpp is None


def test_implausible_tag_is_ignored_and_the_objective_takes_over() -> None:
    result = found(tags(352.78, 20))
    assert (result.mpp, result.source) == (0.5, "objective")
    assert any("352.8" in warning for warning in result.warnings)


def test_contradiction_names_both() -> None:
    result = found(tags(0.2425, 20))
    assert result.source == "tag"
    assert "0.2425" in result.warnings[0]
    assert "20x" in result.warnings[0]
    assert found(tags(0.33, 40)).warnings == ()


def test_user_wins_and_a_differing_file_is_named() -> None:
    result = found(tags(0.25, 40), mpp=0.5)
    assert (result.mpp, result.source) == (0.5, "user")
    assert any("0.5" in warning and "0.25" in warning for warning in result.warnings)
    assert found(tags(0.5), mpp=0.5).warnings == ()


@pytest.mark.parametrize("mpp", [0.0, -1.0, 352.8, math.nan, math.inf])
def test_implausible_user_value_is_refused(mpp) -> None:
    with pytest.raises(ResolutionError, match="not plausible"):
        found({}, mpp=mpp)


def test_pixels_that_are_not_square_give_their_mean_and_a_warning() -> None:
    properties = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.46"}
    result = found(properties)
    assert result.mpp_yx == (0.46, 0.5)
    assert result.mpp == pytest.approx(math.sqrt(0.46 * 0.5))
    assert "not square" in result.warnings[0]


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from([
            "openslide.mpp-x", "openslide.mpp-y", "openslide.objective-power",
            "tiff.XResolution", "tiff.YResolution", "tiff.ResolutionUnit",
        ]),
        st.sampled_from(["", "0", "-1", "nan", "inf", "1e999", "0.5", "0.25", "20", "40", "72", "inch", "centimeter", "x"])
        | st.floats(allow_nan=True).map(str),
    ),
    st.sampled_from(["aperio", "generic-tiff", "tiff"]),
)  # fmt: skip
def test_any_metadata_gives_a_plausible_size_with_a_source_or_none(
    properties, vendor
) -> None:
    result = found(properties, vendor=vendor)
    assert (result.mpp is None) == (result.source is None) == (result.mpp_yx is None)
    if result.mpp is not None:
        assert is_plausible(result.mpp)


def test_tiff_resolution_in_unknown_units_says_nothing() -> None:
    assert tiff_mpp(20_000, "centimeter") == 0.5
    assert tiff_mpp(20_000, "") is None
    assert tiff_mpp(0.0, "inch") is None
