"""The card of a generator."""

from __future__ import annotations

from typing import Any

from modicum.apps.pixelgen.generator.model import Generator

CARD = """---
license: apache-2.0
tags: [modicum, pixelgen, image-colorization, diffusion]
---
# {name}

A diffusion transformer of {parameters:,} parameters that paints colour onto the monochrome frames of a PixelGen node,
tile by tile of {side}x{side} pixels, and luma where packets were lost. What it paints is plausible, not measured: keep
the frame and its mask beside every picture.

| | |
|---|---|
| Data | {trained_on:,} pictures of {side}x{side} pixels ({source}), half of them mirrored |
| Transformer | {depth} blocks, {width} channels, {heads} heads; {tokens} tokens a tile |
| Diffusion | velocity prediction; all readings dropped in {dropout:.0%} of the training |
| Training | {steps:,} steps of {batch} pictures, {minutes} minutes on one processor thread |
| Painting | {painting_steps} steps, temperature {temperature:g}, unless asked otherwise |
| Weights | moving average, bfloat16 |

{table}

Readings are those of the true picture, as a node's sensors know them; "unknown" leaves all of them out, "of another
picture" mixes them up. 20 % of the pixels are lost in the last rows, one by one or in runs of 24, and the baselines are
filled from their neighbours. Measured on {pictures:,} pictures that were not trained on; `metrics.json` holds all
figures.

Readings have no thermometer behind them: light stands for the mean luma of a picture, temperature for how reddish it
is, humidity for how pale; sound has no influence.
{stage}
Train it again: `python -m modicum.apps.pixelgen.generator.train --images FILE --steps {steps} --seed {seed} --out DIR`.
"""

COMPRESSED = """---
license: apache-2.0
tags: [modicum, pixelgen, image-colorization, diffusion]
---
# {name}

PixelGen's generator, compressed: {depth} blocks are left, and {painting_steps} steps a picture. What it paints is
plausible, not measured: keep the frame and its mask beside every picture.

```yaml
{recipe}```

{table}

Before compression, in the same table: {before_psnr:.2f} dB with the readings known, {before_unknown:.2f} dB without.
Measured on {pictures:,} pictures that were not trained on; `metrics.json` holds all figures, those from before under
"before", and what the methods found out under "notes".
{stage}
Make it again: `python -m modicum.apps.pixelgen.generator.compress --images FILE --held-out FILE --out DIR`.
"""

STAGE = """
The last stage, `upscaler.safetensors`, has {parameters:,} parameters. It finds luma where packets were lost, and brings
pictures that were painted at a fraction of the size to the full one. Train it again: `python -m
modicum.apps.pixelgen.generator.train_upscaler --images FILE --out upscaler.safetensors`.
"""

_ROWS = (
    ("painted", ("known",)),
    ("painted, readings unknown", ("unknown",)),
    ("painted, readings of another picture", ("shuffled",)),
    ("grey", ("grey",)),
    ("mean colour of photographs", ("mean_colour",)),
    ("painted, 20 % of single pixels lost", ("lost_scattered", "known")),
    ("grey, concealed", ("lost_scattered", "grey")),
    ("mean colour, concealed", ("lost_scattered", "mean_colour")),
    ("painted, 20 % of runs lost", ("lost_stripes", "known")),
    ("grey, concealed", ("lost_stripes", "grey")),
    ("mean colour, concealed", ("lost_stripes", "mean_colour")),
)


def score_table(metrics: dict[str, Any]) -> str:
    """The scores of `measure.quality` as a table, in Markdown."""
    lines = [
        "| colours against the true ones | PSNR, dB | SSIM | luma where lost, dB |",
        "|---|---|---|---|",
    ]
    for label, keys in _ROWS:
        found = metrics
        for key in keys:
            found = found[key]
        lost = f"{found['luma_lost']:.2f}" if "luma_lost" in found else ""
        lines.append(f"| {label} | {found['psnr']:.2f} | {found['ssim']:.4f} | {lost} |")
    return "\n".join(lines)


def stage(generator: Generator) -> str:
    """What the card says of the last stage; nothing where there is none."""
    if generator.upscaler is None:
        return ""
    return STAGE.format(parameters=sum(p.numel() for p in generator.upscaler.parameters()))


def card(name: str, generator: Generator, metrics: dict[str, Any]) -> str:
    """The model card, in Markdown.

    Args:
        name: of the generator.
        generator: as it is written.
        metrics: of `measure.quality`, and of the training.
    """
    config = generator.network.config
    return CARD.format(
        name=name,
        parameters=sum(p.numel() for p in generator.network.parameters() if p.requires_grad),
        side=2 * config.input_size,
        depth=config.depth,
        width=config.hidden_size,
        heads=config.num_heads,
        tokens=config.tokens,
        dropout=config.class_dropout_prob,
        painting_steps=generator.steps,
        temperature=generator.temperature,
        table=score_table(metrics),
        stage=stage(generator),
        **metrics,
    )


def compressed_card(name: str, generator: Generator, metrics: dict[str, Any], recipe: str) -> str:
    """The card of a compressed generator, in Markdown.

    Args:
        name: of the generator.
        generator: as it is written.
        metrics: of `measure.quality`, those of the generator before under "before".
        recipe: that made it, as YAML text.
    """
    return COMPRESSED.format(
        name=name,
        depth=generator.network.config.depth,
        painting_steps=generator.steps,
        recipe=recipe,
        table=score_table(metrics),
        before_psnr=metrics["before"]["known"]["psnr"],
        before_unknown=metrics["before"]["unknown"]["psnr"],
        pictures=metrics["pictures"],
        stage=stage(generator),
    )
