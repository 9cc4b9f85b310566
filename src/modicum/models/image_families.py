"""Table entries of the image models that modicum itself defines: DiT and SiT, MAR, VAR, Infinity, CIFAR ResNets.

The blocks of a next-scale model lie in its transformer; the transformer alone is described too."""

from __future__ import annotations

from modicum.models.families import Family, Fold, register

_TABLE = "a table of scales and shifts, which are added and not multiplied"
_TEMPERATURE = "one temperature per head"

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
        name="mar",
        model_types=("mar",),
        blocks=("encoder_blocks", "decoder_blocks"),
        roles={"attn.qkv": "qkv", "attn.proj": "o", "mlp.fc1": "fc1", "mlp.fc2": "fc2"},
        attention="attn",
        mlp="mlp",
        folds=(Fold("norm1", ("attn.qkv",), "attn"), Fold("norm2", ("mlp.fc1",), "mlp")),
        depth=("encoder_depth", "decoder_depth"),
    )
)
register(
    Family(
        name="var",
        model_types=("var",),
        blocks=("transformer.blocks", "blocks"),
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
            "ada_gss": _TABLE,
            "attn.scale_mul_1H11": _TEMPERATURE,
        },
        depth="depth",
    )
)
register(
    Family(
        name="infinity",
        model_types=("infinity",),
        blocks=("transformer.blocks", "blocks"),
        roles={
            "sa.mat_qkv": "qkv",
            "sa.proj": "o",
            "ca.mat_q": "q",
            "ca.mat_kv": "kv",
            "ca.proj": "o",
            "ffn.fc1": "fc1",
            "ffn.fc2": "fc2",
        },
        attention="sa",
        mlp="ffn",
        skip={"ada_gss": _TABLE, "sa.scale_mul_1H11": _TEMPERATURE},
        depth="depth",
    )
)
register(
    Family(
        name="cifar_resnet",
        model_types=("cifar_resnet",),
        blocks=("layer1", "layer2", "layer3"),
        roles={"conv1": "conv1", "conv2": "conv2"},
    )
)
