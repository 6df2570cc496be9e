"""An encoder made ready for inference: batch norms folded into the convolutions before them, weights cast once.

A convolution W ∗ x + b followed by a batch norm in evaluation mode, γ (y − μ) / √(σ² + ε) + β, is the convolution with
W γ / √(σ² + ε) and (b − μ) γ / √(σ² + ε) + β (Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", section 3.2). On a CPU the norms of EfficientNet-B3 cost a third of its time.

Which norm follows which convolution is not read from names but seen in a pass, so any network will do; and because a
network may also use the map between the two, or weights that it changes on the way, the copy is taken only if it gives
the features of the original.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = 1e-3
"""Largest difference of a feature in float32, as a share of the largest feature; folding itself costs about 1e-6."""
_Key = tuple[object, ...]
_READY: WeakKeyDictionary[nn.Module, tuple[_Key, nn.Module]] = WeakKeyDictionary()


def state_version(module: nn.Module) -> _Key:
    """Something that changes when a weight is replaced or changed in place (torch counts that in `_version`)."""
    values = module.state_dict(keep_vars=True).values()
    return tuple((id(v), v._version) for v in values)


def ready_for_inference(
    encoder: nn.Module, size_px: int, dtype: torch.dtype | None
) -> nn.Module:
    """A copy with folded norms and cast weights; the same copy again while no weight was changed.

    Args:
        encoder: Takes pixels (B, 3, size_px, size_px), 0 … 255; it is in evaluation mode.
        size_px: Side of the patches, px.
        dtype: Of the weights of convolutions and linear layers, for use under autocast to it; None leaves float32.

    Returns:
        The copy, in which norms stay where they cannot be folded.
    """
    key = (state_version(encoder), size_px, dtype)
    known = _READY.get(encoder)
    if known is None or known[0] != key:
        made = _folded(encoder, size_px)
        known = (key, made if dtype is None else _cast(made, dtype))
        _READY[encoder] = known
    return known[1]


def _folded(encoder: nn.Module, size_px: int) -> nn.Module:
    twin = copy.deepcopy(encoder).eval()
    device = next(encoder.parameters()).device
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, size_px, size_px), generator=noise)
    pixels = pixels.to(device, torch.uint8)
    with torch.no_grad():
        pairs, expected = _conv_norm_pairs(twin, pixels)
        if not pairs:
            return twin
        for conv, norm in pairs:
            _fold(twin, conv, norm)
        if _same_features(twin, pixels, expected):
            return twin
    return copy.deepcopy(encoder).eval()


def _conv_norm_pairs(
    net: nn.Module, pixels: Tensor
) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of convolutions and the norms that read their output, each run once; and the features of the pass."""
    from timm.layers.norm_act import BatchNormAct2d

    # Weak: the maps of a whole network together would be hundreds of megabytes.
    made: dict[int, tuple[str, ref[Tensor]]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    hooks = []

    def note_output(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            made[id(output)] = (name, ref(output))
            runs[name] = runs.get(name, 0) + 1

        return hook

    def note_input(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            runs[name] = runs.get(name, 0) + 1
            conv, output = made.get(id(inputs[0]), ("", None))
            if output is not None and output() is inputs[0]:
                pairs.append((conv, name))

        return hook

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_output(name)))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(note_input(name)))
    try:
        features = net(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [p for p in pairs if runs[p[0]] == runs[p[1]] == 1], features


def _fold(net: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        return
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    net.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))


def _same_features(net: nn.Module, pixels: Tensor, expected: Tensor) -> bool:
    try:
        found = net(pixels)
    except (AttributeError, RuntimeError, TypeError):
        # A network that asks its norm for more than an activation.
        return False
    if found.shape != expected.shape:
        return False
    bound = TOLERANCE * float(expected.abs().max())
    return bool((found - expected).abs().max() <= bound)


def _cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """What autocast would do at every call; subclasses may work on their weights first, so they are left alone."""
    for module in net.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)
    return net
