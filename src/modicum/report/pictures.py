"""Images side by side in one PNG."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 2  # pixels between two images
PAPER = 1.0  # white


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images row by row in one, with a gap between them.

    Args:
        images: `[n, C, H, W]` in [0, 1].
        columns: images per row; by default as many as make the grid about square.

    Returns:
        `[C, rows * (H + 2) - 2, columns * (W + 2) - 2]`.
    """
    count, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    sheet = images.new_full((rows * columns, channels, height + GAP, width + GAP), PAPER)
    sheet[:count, :, :height, :width] = images
    sheet = sheet.view(rows, columns, channels, height + GAP, width + GAP)
    whole = sheet.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + GAP), -1)
    return whole[:, :-GAP, :-GAP]


def enlarged(images: Tensor, least: int) -> Tensor:
    """Images `[..., C, H, W]` whose pixels are repeated until the shorter side has `least` pixels."""
    factor = max(1, math.ceil(least / min(images.shape[-2:])))
    return images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def labelled(strips: Tensor, labels: list[str]) -> Tensor:
    """Strips `[n, C, H, W]` below each other, each with its label on the left: `[C, n * (H + 2) - 2, ...]`."""
    font = ImageFont.load_default(size=14)
    height = strips.shape[-2]
    width = 24 + max(math.ceil(font.getlength(label)) for label in labels)
    margins = []
    for label in labels:
        margin = Image.new("L", (width, height), 255)
        ImageDraw.Draw(margin).text((8, height / 2), label, fill=40, font=font, anchor="lm")
        pixels = torch.frombuffer(bytearray(margin.tobytes()), dtype=torch.uint8)
        margins.append(pixels.view(1, height, width).float() / 255)
    texts = torch.stack(margins).expand(-1, strips.shape[1], -1, -1)  # [n, C, H, width]
    return grid(torch.cat((texts, strips), dim=-1), columns=1)


def to_png(image: Tensor) -> bytes:
    """An image `[1 or 3, H, W]` in [0, 1] as the bytes of a PNG file."""
    levels = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)  # [H, W, C]
    pixels = levels.squeeze(-1).contiguous().cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
