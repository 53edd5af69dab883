"""The full-size networks of the canonicalization benchmark, exported raw by torch.onnx, and stacks of equal blocks.

``python benchmarks/canonical_nets.py NAME PATH`` writes one export; :func:`exported` does so once, in a process of its
own, and keeps the file.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from photos import ROOT

from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

CACHE = ROOT / "build" / "bench-cache" / "canonical"
# Tokens that the language models are exported with.
_TOKENS = 128


def exported(name: str) -> Path:
    """Path of the raw dynamo export of a network, made when it is not there yet."""
    path = CACHE / f"{name.replace('/', '-').replace(' ', '-').lower()}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, name, str(path)], check=True)
    return path


def _torchvision(builder: str) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import torch
        import torchvision

        return getattr(torchvision.models, builder)(weights=None), (torch.randn(1, 3, 224, 224),)

    return build


def _bert() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertModel(BertConfig())

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(tokens, attention_mask=mask).last_hidden_state

    return Encoder(), (torch.randint(0, 30000, (1, _TOKENS)), torch.ones(1, _TOKENS, dtype=torch.long))


def _gpt2() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = GPT2LMHeadModel(GPT2Config(use_cache=False))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(tokens).logits

    return Decoder(), (torch.randint(0, 50000, (1, _TOKENS)),)


NETWORKS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "ResNet101": _torchvision("resnet101"), "ViT-B/16": _torchvision("vit_b_16"), "Swin-T": _torchvision("swin_t"),
    "BERT-base": _bert, "GPT-2 small": _gpt2,
}


def _seed(module: Any) -> None:
    """Draw what initialisers leave at zero or one: biases, scales, running statistics."""
    import torch

    random = np.random.default_rng(0)
    with torch.no_grad():
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point() or tensor.ndim != 1:
                continue
            scale = path.endswith(("weight", "var"))
            value = random.uniform(0.5, 1.5, tensor.shape) if scale else random.normal(0, 0.1, tensor.shape)
            tensor.copy_(torch.from_numpy(value))


def export(name: str, path: Path) -> None:
    """Write the raw export of one network: dynamo exporter, its optimiser off, weights in the file."""
    import torch

    ensure_torchvision_importable()  # transformers imports it too

    torch.manual_seed(0)
    module, example = NETWORKS[name]()
    module.eval()
    _seed(module)
    torch.onnx.export(module, example, path, dynamo=True, optimize=False, external_data=False, verbose=False)


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))
