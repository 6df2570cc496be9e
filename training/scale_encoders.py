"""The encoders of an extraction: one for all scales, or one per scale as self-supervised training makes them.

    msamil-train extract --model 20x=a.safetensors 10x=b.safetensors 5x=c.safetensors --cohort cohort.csv -o features/

Patches are laid out and lesions found by the first checkpoint; all must describe the same patches and make features of
one width, because one aggregator gets them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.checkpoint import load_checkpoint
from napari_msamil.encoding import encoder_id
from napari_msamil.errors import ConfigError
from napari_msamil.inference import FeatureBag, encode_patches
from napari_msamil.progress import finish

from .named_encoder import is_named_encoder, load_named_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.device import Runtime
    from napari_msamil.patches import PatchGrid
    from napari_msamil.slide import Slide


@dataclass(frozen=True)
class ScaleEncoders:
    """Who encodes the patches of each scale.

    Attributes:
        first: Lays out patches and finds lesions.
        of_scale: One checkpoint per scale, in the order of the scales; empty: `first` encodes all.
    """

    first: LoadedModel
    of_scale: tuple[LoadedModel, ...] = ()

    def encode(self, slide: Slide, grid: PatchGrid, runtime: Runtime) -> FeatureBag:
        """Features of the patches of a grid, in its order.

        Raises:
            MsamilError: No patch of some scale can be read.
        """
        if not self.of_scale:
            return finish(encode_patches(slide, grid, self.first, runtime))
        bags = {}
        for scale in np.unique(grid.scale).tolist():
            chosen = np.flatnonzero(grid.scale == scale)
            loaded = self.of_scale[scale]
            bags[scale] = finish(
                encode_patches(slide, _part(grid, chosen), loaded, runtime)
            )
        # of all scales, also where a slide has no patch of one: the bags of a cohort must agree
        name = "+".join(encoder_id(loaded, runtime) for loaded in self.of_scale)
        return _joined(grid, bags, name)


def load_encoders(
    refs: Sequence[str], recipe: Mapping[str, Any], device: str
) -> ScaleEncoders:
    """Load what `--model` names.

    Args:
        refs: One checkpoint or `timm:` name; or `scale=checkpoint` for each scale.
        recipe: Sizes of a `timm:` encoder.
        device: Where they live.

    Raises:
        ConfigError: A scale is missing, unknown or named twice, or the checkpoints do not go together.
    """
    if len(refs) == 1:
        ref = refs[0]
        if is_named_encoder(ref):
            return ScaleEncoders(load_named_encoder(ref, recipe, device))
        return ScaleEncoders(load_checkpoint(ref, device=device))
    pairs = [ref.partition("=")[::2] for ref in refs]
    if not all(path for _, path in pairs):
        raise ConfigError(
            f"Several --model are given as scale=checkpoint, for example 20x=a.safetensors, not {' '.join(refs)}."
        )
    loaded = {name: load_checkpoint(path, device=device) for name, path in pairs}
    first = next(iter(loaded.values()))
    names = [s.name for s in first.config.patches.scales]
    if sorted(name for name, _ in pairs) != sorted(names):
        raise ConfigError(
            f"Several --model need one scale=checkpoint for each of {', '.join(names)}, not {' '.join(refs)}."
        )
    _check_alike(loaded)
    return ScaleEncoders(first, tuple(loaded[name] for name in names))


def _check_alike(loaded: Mapping[str, LoadedModel]) -> None:
    facts = {
        name: (model.config.patches.scales, model.config.encoder.dim)
        for name, model in loaded.items()
    }
    if len(set(facts.values())) > 1:
        raise ConfigError(
            "The encoders of the scales were made for other patches or widths: "
            + "; ".join(f"{n}: {d} features" for n, (_, d) in facts.items())
            + ". Train them with one recipe."
        )


def _part(grid: PatchGrid, chosen: Any) -> PatchGrid:
    return replace(
        grid,
        coords_xy0=grid.coords_xy0[chosen],
        scale=grid.scale[chosen],
        lesion_fraction=grid.lesion_fraction[chosen],
    )


def _joined(grid: PatchGrid, bags: Mapping[int, FeatureBag], name: str) -> FeatureBag:
    """The bags of the scales as one, in the order of the whole grid."""
    some = next(iter(bags.values()))
    features = np.zeros((len(grid), some.features.shape[1]), np.float32)
    valid = np.zeros(len(grid), np.bool_)
    faults: dict[int, str] = {}
    for scale, bag in bags.items():
        chosen = np.flatnonzero(grid.scale == scale)
        features[chosen], valid[chosen] = bag.features, bag.valid
        faults |= {int(chosen[i]): reason for i, reason in bag.faults.items()}
    return FeatureBag(
        features=features,
        grid=grid,
        encoder_id=name,
        valid=valid,
        faults=faults,
        timings_s={
            k: sum(b.timings_s[k] for b in bags.values()) for k in some.timings_s
        },
    )
