"""PyTorch networks of the convergence matrix, in the usual way to write each of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
Example = tuple[Tensor, ...]


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions with batch norm."""

    def __init__(self, inside: int, outside: int) -> None:
        layers: list[nn.Module] = []
        for width in (inside, outside):
            layers += [nn.Conv2d(width, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Two levels up by transposed convolution, one by resizing; skips are concatenated."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([ConvBlock(3, width), ConvBlock(width, 2 * width), ConvBlock(2 * width, 4 * width)])
        self.bottom = ConvBlock(4 * width, 8 * width)
        self.lift = nn.ModuleList([nn.ConvTranspose2d(8 * width, 4 * width, 2, stride=2),
                                   nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1)])
        self.up = nn.ModuleList([ConvBlock(8 * width, 4 * width), ConvBlock(4 * width, 2 * width),
                                 ConvBlock(3 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            skips.append(x := block(x))
            x = functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for block, lift, skip in zip(self.up, self.lift, reversed(skips), strict=False):
            x = block(torch.cat([lift(x), skip], 1))
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.up[2](torch.cat([x, skips[0]], 1)))


class Attention(nn.Module):
    """Multi-head self-attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, steps, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        if bias is not None:
            scores = scores + bias
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, steps, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, approximate: str = "none") -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches by convolution, a class token, learned positions; torch's own multi-head attention in the first block."""

    def __init__(self, width: int = 48, depth: int = 3, heads: int = 4, size: int = 64, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.first = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth - 1))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Windows(nn.Module):
    """A Swin block: (shifted) window attention with relative position bias, over maps that stay channels last."""

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift, self.heads = size, window, shift, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        axis = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = (axis[:, :, None] - axis[:, None]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", (offset[..., 0] * (2 * window - 1) + offset[..., 1]).flatten())
        region = torch.zeros(1, size, size, 1)
        for part, rows in enumerate((slice(0, -window), slice(-window, -shift or None), slice(-shift or size, None))):
            region[:, rows] += 3 * part
            region[:, :, rows] += part
        region = self.split(region).squeeze(-1)
        self.register_buffer("mask", ((region[:, None] != region[:, :, None]) * -100.0)[:, None] if shift else None)

    def split(self, x: Tensor) -> Tensor:
        batch, _, _, width = x.shape
        count, window = self.size // self.window, self.window
        x = x.view(batch, count, window, count, window, width).transpose(2, 3)
        return x.reshape(-1, window * window, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, size, _, width = x.shape
        count, window = self.size // self.window, self.window
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        bias = self.table[self.index].view(window**2, window**2, -1).permute(2, 0, 1)[None]
        if self.mask is not None:
            bias = bias + self.mask.repeat(batch, 1, 1, 1)
        y = self.attention(self.split(y), bias)
        y = y.view(batch, count, count, window, window, width).transpose(2, 3).reshape(batch, size, size, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Two stages of window attention with patch merging between them."""

    def __init__(self, width: int = 24, size: int = 8, window: int = 4) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.first = nn.Sequential(Windows(width, 2, size, window, 0), Windows(width, 2, size, window, window // 2))
        self.merge_norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
        self.second = Windows(2 * width, 4, size // 2, window, 0)
        self.last, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.norm(self.patches(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        x = self.second(self.merge(self.merge_norm(x)))
        return self.head(self.last(x).permute(0, 3, 1, 2).mean((2, 3)))


class Bert(nn.Module):
    """Post-norm encoder with separate projections, token types and a mask of padding."""

    def __init__(self, words: int = 100, width: int = 48, depth: int = 2, heads: int = 4, longest: int = 32) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(longest, width)
        self.types, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(width, heads) for _ in range(depth))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places) + self.types(torch.zeros_like(ids)))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class BertLayer(nn.Module):
    """Attention and feed-forward, each followed by layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, steps, width = x.shape
        q, k, v = (layer(x).view(batch, steps, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // self.heads) + bias).softmax(-1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).reshape(batch, steps, width)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Gpt(nn.Module):
    """Causal decoder with tied embedding, tanh GELU, a mask that is a buffer; torch's fused attention in one block."""

    def __init__(self, words: int = 100, width: int = 48, depth: int = 3, heads: int = 4, longest: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(longest, width)
        self.norm_fused, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, "tanh") for _ in range(depth - 1))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", torch.full((longest, longest), -1e4).triu(1)[None, None])

    def forward(self, ids: Tensor) -> Tensor:
        batch, steps = ids.shape
        x = self.words(ids) + self.positions(torch.arange(steps))
        q, k, v = (part.view(batch, steps, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(self.norm_fused(x)).chunk(3, -1))
        fused = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(fused.transpose(1, 2).reshape(batch, steps, -1))
        for block in self.blocks:
            x = block(x, self.mask[:, :, :steps, :steps])
        return self.norm(x) @ self.words.weight.T


class Recurrent(nn.Module):
    """Two recurrent layers and a dense layer on the last step."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], inside: int = 16, width: int = 24) -> None:
        super().__init__()
        self.cell, self.head = cell(inside, width, num_layers=2, batch_first=True), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class DetectorHead(nn.Module):
    """Three levels of a feature pyramid; classes and boxes of all anchors, shared heads, scales per level."""

    def __init__(self, width: int = 24, anchors: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.ModuleList([ConvBlock(3, width), ConvBlock(width, width), ConvBlock(width, width)])
        self.lateral = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))
        self.shared = ConvBlock(width, width)
        self.classes = nn.Conv2d(width, anchors * classes, 3, padding=1)
        self.boxes = nn.Conv2d(width, anchors * 4, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0 + level)) for level in range(3))
        self.count = classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = []
        for block in self.stem:
            levels.append(x := functional.max_pool2d(block(x), 2))
        merged = self.lateral[-1](levels[-1])
        pyramid = [merged]
        for lateral, level in zip(reversed(self.lateral[:-1]), reversed(levels[:-1]), strict=True):
            merged = lateral(level) + functional.interpolate(merged, scale_factor=2, mode="nearest")
            pyramid.append(merged)
        scores, boxes = [], []
        for level, scale in zip(pyramid, self.scales, strict=True):
            features = self.shared(level)
            scores.append(self.classes(features).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.count))
            boxes.append((self.boxes(features) * scale).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return torch.cat(scores, 1).sigmoid(), torch.cat(boxes, 1).exp()


def _mobilenet() -> tuple[nn.Module, Example]:
    from onnxfix.frameworks.torchvision_ops import ensure_torchvision_importable

    ensure_torchvision_importable()
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(weights=None, num_classes=CLASSES), (torch.randn(1, 3, 96, 96),)


def _ids(*shape: int) -> Tensor:
    return torch.randint(0, 100, shape, dtype=torch.int64)


BUILDERS: dict[str, Callable[[], tuple[nn.Module, Example]]] = {
    "U-Net": lambda: (UNet(), (torch.randn(1, 3, 32, 32),)),
    "ViT": lambda: (ViT(), (torch.randn(1, 3, 64, 64),)),
    "Swin": lambda: (Swin(), (torch.randn(1, 3, 32, 32),)),
    "BERT": lambda: (Bert(), (_ids(1, 12), torch.ones(1, 12, dtype=torch.int64))),
    "GPT-2": lambda: (Gpt(), (_ids(1, 12),)),
    "LSTM (PyTorch)": lambda: (Recurrent(nn.LSTM), (torch.randn(1, 20, 16),)),
    "GRU (PyTorch)": lambda: (Recurrent(nn.GRU), (torch.randn(1, 20, 16),)),
    "MobileNetV2 (PyTorch)": _mobilenet,
    "detector head": lambda: (DetectorHead(), (torch.randn(1, 3, 64, 64),)),
}
