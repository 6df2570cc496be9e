"""How `tiny-v1.safetensors` and `tiny-v1.json` were made, once. They are kept for ever; never run this again for format 1.

python -m tests.reference.make_tiny_v1
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from napari_msamil.checkpoint import save_checkpoint
from napari_msamil.models import build_model
from napari_msamil.models.reference import reference_logits, reference_pixels
from tests.test_checkpoint import tiny_config

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(20261121)
    model = build_model(tiny_config()).train()
    pixels = torch.from_numpy(reference_pixels(32))
    with torch.no_grad():
        for _ in range(
            100
        ):  # Running statistics that let the pixels through to the logits.
            model.encoder(pixels)
        model.encoder.positions.mul_(5)
    path = save_checkpoint(
        HERE / "tiny-v1.safetensors",
        model.eval(),
        {"recipe": "seeded, untrained"},
        half=True,
    )
    golden = {
        "classes": list(model.config.classes),
        "logits": reference_logits(load(path)),
    }
    (HERE / "tiny-v1.json").write_text(json.dumps(golden, indent=1) + "\n")


def load(path: Path) -> torch.nn.Module:
    from napari_msamil.checkpoint import load_checkpoint

    return load_checkpoint(path).model


if __name__ == "__main__":
    main()
