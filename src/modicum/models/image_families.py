"""Table entries of the image models that modicum itself defines: DiT and SiT, VAR."""

from __future__ import annotations

from modicum.models.families import Family, register

register(
    Family(
        name="dit",
        model_types=("dit",),
        blocks=("blocks",),
        roles={
            "adaLN_modulation.1": "ada",
            "attn.qkv": "qkv",
            "attn.proj": "o",
            "mlp.fc1": "fc1",
            "mlp.fc2": "fc2",
        },
        attention="attn",
        mlp="mlp",
        depth="depth",
    )
)
register(
    Family(
        name="var",
        model_types=("VARConfig",),
        blocks=("transformer.blocks",),
        roles={
            "ada_lin.1": "ada",
            "attn.mat_qkv": "qkv",
            "attn.proj": "o",
            "ffn.fc1": "fc1",
            "ffn.fc2": "fc2",
        },
        attention="attn",
        mlp="ffn",
        skip={
            "ada_gss": "a table of scales and shifts, which are added and not multiplied",
            "attn.scale_mul_1H11": "one temperature per head",
        },
        depth="depth",
    )
)
