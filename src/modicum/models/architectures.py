"""The table: the families that modicum knows, as entries for `modicum.models.register`.

Names are those of transformers 5. Fold entries list only exact identities: through a norm into its readers,
through the linear branch of a gated feed-forward, from values into the output projection (attention
averages values, so a scale per value channel passes through), and through ReLU, which commutes with
positive scales. Post-norm blocks (BERT) have no norm fold, because the residual reads the norm's output
too.
"""

from __future__ import annotations

from modicum.models.families import Experts, Family, Fold, register

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ATTENTION = dict(zip((*_QKV, "self_attn.o_proj"), ("q", "k", "v", "o"), strict=True))
_GATED = {"mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down"}
_SHARED = {f"mlp.shared_expert.{name}_proj": name for name in ("gate", "up", "down")}

_NORM_TO_QKV = Fold("input_layernorm", _QKV, "self_attn")
_NORM_TO_MLP = Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp")
_UP_TO_DOWN = Fold("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj")
_V_TO_O = Fold("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj")

_ROUTER = {"mlp.gate": "the router decides which expert sees a token"}
_SHARED_GATE = {"mlp.shared_expert_gate": "one row that decides how much the shared expert counts"}
_EXPERTS_READ = ("mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.gate")

register(
    Family(
        name="llama",
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        blocks=("layers",),
        roles=_ATTENTION | _GATED,
        attention="self_attn",
        mlp="mlp",
        folds=(_NORM_TO_QKV, _NORM_TO_MLP, _UP_TO_DOWN, _V_TO_O),
    )
)
register(
    Family(
        name="gemma",
        model_types=("gemma",),
        blocks=("layers",),
        roles=_ATTENTION | _GATED,
        attention="self_attn",
        mlp="mlp",
        folds=(_NORM_TO_QKV, _NORM_TO_MLP, _UP_TO_DOWN, _V_TO_O),
        norm_offset=True,
    )
)
register(
    Family(
        name="gemma2",
        model_types=("gemma2", "gemma3_text"),
        blocks=("layers",),
        roles=_ATTENTION | _GATED,
        attention="self_attn",
        mlp="mlp",
        folds=(
            _NORM_TO_QKV,
            Fold("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
            _UP_TO_DOWN,
            _V_TO_O,
        ),
        norm_offset=True,
    )
)
register(
    Family(
        name="phi3",
        model_types=("phi3",),
        blocks=("layers",),
        roles={
            "self_attn.qkv_proj": "qkv",
            "self_attn.o_proj": "o",
            "mlp.gate_up_proj": "gate_up",
            "mlp.down_proj": "down",
        },
        attention="self_attn",
        mlp="mlp",
        folds=(
            Fold("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
            Fold("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
        ),
    )
)
_PRE_NORM = (("do_layer_norm_before", True),)
register(
    Family(
        name="opt",
        model_types=("opt",),
        blocks=("decoder.layers",),
        roles={**dict(zip(_QKV, "qkv", strict=True)), "self_attn.out_proj": "o", "fc1": "fc1", "fc2": "fc2"},
        attention="self_attn",
        folds=(
            Fold("self_attn_layer_norm", _QKV, "self_attn", _PRE_NORM),
            Fold("final_layer_norm", ("fc1",), "fc1", _PRE_NORM),
            Fold("fc1", ("fc2",), "fc2", (("activation_function", "relu"),)),
            Fold("self_attn.v_proj", ("self_attn.out_proj",), "self_attn.out_proj"),
        ),
    )
)
register(
    Family(
        name="gpt2",
        model_types=("gpt2",),
        blocks=("h",),
        roles={"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "fc1", "mlp.c_proj": "fc2"},
        attention="attn",
        mlp="mlp",
        folds=(Fold("ln_1", ("attn.c_attn",), "attn"), Fold("ln_2", ("mlp.c_fc",), "mlp")),
    )
)
register(
    Family(
        name="bert",
        model_types=("bert",),
        blocks=("encoder.layer",),
        roles={
            "attention.self.query": "q",
            "attention.self.key": "k",
            "attention.self.value": "v",
            "attention.output.dense": "o",
            "intermediate.dense": "fc1",
            "output.dense": "fc2",
        },
        attention="attention",
        folds=(Fold("attention.self.value", ("attention.output.dense",), "attention.output.dense"),),
    )
)
_VIT_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
register(
    Family(
        name="vit",
        model_types=("vit", "deit"),
        blocks=("layers",),
        roles={
            **dict(zip(_VIT_QKV, "qkv", strict=True)),
            "attention.o_proj": "o",
            "mlp.fc1": "fc1",
            "mlp.fc2": "fc2",
        },
        attention="attention",
        mlp="mlp",
        folds=(
            Fold("layernorm_before", _VIT_QKV, "attention"),
            Fold("layernorm_after", ("mlp.fc1",), "mlp"),
            Fold("attention.v_proj", ("attention.o_proj",), "attention.o_proj"),
        ),
        renames=(
            (r"\blayers\.(\d+)\.", r"encoder.layer.\1."),
            (r"\.attention\.q_proj\.", ".attention.attention.query."),
            (r"\.attention\.k_proj\.", ".attention.attention.key."),
            (r"\.attention\.v_proj\.", ".attention.attention.value."),
            (r"\.attention\.o_proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
        ),
    )
)
register(
    Family(
        name="resnet",
        model_types=("resnet",),
        blocks=("encoder.stages.*.layers",),
        roles={
            "layer.0.convolution": "conv1",
            "layer.1.convolution": "conv2",
            "layer.2.convolution": "conv3",
            "shortcut.convolution": "shortcut",
        },
    )
)
register(
    Family(
        name="mamba",
        model_types=("mamba",),
        blocks=("layers",),
        roles={"mixer.in_proj": "in", "mixer.x_proj": "x", "mixer.out_proj": "out"},
        attention="mixer",
        folds=(Fold("norm", ("mixer.in_proj",), "mixer"),),
        skip={
            "mixer.dt_proj": "the mixer reads this small matrix as a tensor and never calls it as a layer",
            "mixer.conv1d": "a depthwise convolution: four weights per channel, no matrix to compress",
            "mixer.A_log": "the state transition: a diagonal in the exponent, not a matrix that multiplies",
        },
        renames=((r"\bembeddings\.weight$", "embedding.weight"),),
    )
)
register(
    Family(
        name="mixtral",
        model_types=("mixtral",),
        blocks=("layers",),
        roles=_ATTENTION,
        attention="self_attn",
        mlp="mlp",
        folds=(_NORM_TO_QKV, Fold("post_attention_layernorm", _EXPERTS_READ, "mlp"), _V_TO_O),
        experts=Experts(
            disk=(
                "block_sparse_moe.experts.{expert}.w1.weight",
                "block_sparse_moe.experts.{expert}.w3.weight",
                "block_sparse_moe.experts.{expert}.w2.weight",
            )
        ),
        skip=_ROUTER,
        renames=((r"\.mlp\.gate\.weight$", ".block_sparse_moe.gate.weight"),),
    )
)
_SHARED_READ = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate")
register(
    Family(
        name="qwen2_moe",
        model_types=("qwen2_moe",),
        blocks=("layers",),
        roles=_ATTENTION | _GATED | _SHARED,
        attention="self_attn",
        mlp="mlp",
        folds=(
            _NORM_TO_QKV,
            _NORM_TO_MLP,
            Fold("post_attention_layernorm", (*_EXPERTS_READ, *_SHARED_READ), "mlp"),
            _UP_TO_DOWN,
            Fold(
                "mlp.shared_expert.up_proj", ("mlp.shared_expert.down_proj",), "mlp.shared_expert.down_proj"
            ),
            _V_TO_O,
        ),
        experts=Experts(),
        skip=_ROUTER | _SHARED_GATE,
    )
)
register(
    Family(
        name="qwen3_moe",
        model_types=("qwen3_moe", "olmoe"),
        blocks=("layers",),
        roles=_ATTENTION | _GATED,
        attention="self_attn",
        mlp="mlp",
        folds=(
            _NORM_TO_QKV,
            _NORM_TO_MLP,
            Fold("post_attention_layernorm", _EXPERTS_READ, "mlp"),
            _UP_TO_DOWN,
            _V_TO_O,
        ),
        experts=Experts(),
        skip=_ROUTER,
    )
)
