"""The modules that `sweep_check.py` checks: for each package, names with factories and inputs.

Each function imports its package inside, since only its own child process has to.
"""

# ruff: noqa: E731, PLC0415 - short factories side by side; each child process imports only its own package

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Case = tuple[str, Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]


def case(factory: Callable[..., nn.Module], *args: Any, made: tuple = (), name: str = "", **options: Any) -> Case:
    """Return one module to check.

    Args:
        factory: its class, or a function that makes it.
        *args: inputs.
        made: positional arguments for the factory.
        name: what it is called; the class's name where empty.
        **options: keyword arguments for the factory; ``kwargs`` are keyword inputs.
    """
    kwargs = options.pop("kwargs", {})
    return name or factory.__name__, lambda: factory(*made, **options), args, kwargs


def of_torch() -> Iterator[Case]:
    """Composites of torch's own modules."""
    x, image = torch.randn(3, 7, 16), torch.randn(2, 3, 16, 16)
    mlp = lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(32), nn.Linear(32, 4))
    yield case(mlp, x, name="MLP")
    conv = lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    yield case(conv, image, name="convolutions")
    layer = lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    yield case(lambda: nn.TransformerEncoder(layer(), 2), x, name="TransformerEncoder")
    yield case(nn.Transformer, x, x, made=(16, 4, 1, 1, 32), batch_first=True)
    yield case(nn.LSTM, x, made=(16, 8, 2), batch_first=True, bidirectional=True)
    yield case(nn.GRU, x, made=(16, 8), batch_first=True)
    yield case(nn.MultiheadAttention, x, x, x, made=(16, 4), batch_first=True)
    normed = lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
    yield case(normed, x, name="weight_norm(Linear)")
    yield case(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 8)), x, name="spectral_norm(Linear)")


def of_transformers() -> Iterator[Case]:
    """Whole models in tiny configurations."""
    import transformers as t

    ids = torch.randint(3, 60, (2, 7))
    text = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"intermediate_size": 32, "max_position_embeddings": 32}
    few = {"num_key_value_heads": 2}
    gpt = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
    routed = {"num_local_experts": 4, "num_experts_per_tok": 2}
    sized = {"image_size": 16, "patch_size": 4, "num_channels": 3}
    vision = {key: value for key, value in text.items() if key not in ("vocab_size", "max_position_embeddings")}
    small = {"vocab_size": 64, "d_model": 16, "d_ff": 32, "d_kv": 4, "num_layers": 2, "num_heads": 4}
    seq = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
    seq |= {
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 32,
    }
    models: list[tuple[str, str, dict[str, Any]]] = [
        ("BertModel", "BertConfig", text),
        ("BertForMaskedLM", "BertConfig", text),
        ("RobertaModel", "RobertaConfig", text),
        ("AlbertModel", "AlbertConfig", text | {"embedding_size": 8}),
        ("ElectraModel", "ElectraConfig", text | {"embedding_size": 8}),
        ("DebertaV2Model", "DebertaV2Config", text | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        ("DistilBertModel", "DistilBertConfig", {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 4}),
        ("GPT2LMHeadModel", "GPT2Config", gpt),
        ("GPTNeoXForCausalLM", "GPTNeoXConfig", text),
        ("OPTModel", "OPTConfig", text | {"ffn_dim": 32, "word_embed_proj_dim": 16}),
        ("BloomModel", "BloomConfig", {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
        ("LlamaForCausalLM", "LlamaConfig", text | few),
        ("MistralModel", "MistralConfig", text | few),
        ("Qwen2Model", "Qwen2Config", text | few),
        ("Qwen3Model", "Qwen3Config", text | few | {"head_dim": 4}),
        ("Gemma2Model", "Gemma2Config", text | few | {"head_dim": 4}),
        ("PhiModel", "PhiConfig", text),
        ("MixtralForCausalLM", "MixtralConfig", text | few | routed),
        (
            "MambaModel",
            "MambaConfig",
            {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
        ),
    ]
    cached = {"use_cache": False}
    for model, config, options in models:
        made, settings = getattr(t, model), getattr(t, config)
        causal = "LM" in model or config[:4] not in ("Bert", "Robe", "Albe", "Elec", "Debe", "Dist")
        kwargs = cached if causal and "Masked" not in model else {}
        yield case(
            lambda made=made, settings=settings, o=options: made(settings(**o)), ids, name=model, kwargs=kwargs
        )
    pair = {"input_ids": ids, "decoder_input_ids": ids} | cached
    yield case(
        lambda: t.T5ForConditionalGeneration(t.T5Config(**small)), name="T5ForConditionalGeneration", kwargs=pair
    )
    yield case(lambda: t.BartModel(t.BartConfig(**seq)), name="BartModel", kwargs=pair)
    image = torch.randn(2, 3, 16, 16)
    yield case(lambda: t.ViTModel(t.ViTConfig(**vision, **sized)), image, name="ViTModel")
    yield case(lambda: t.Dinov2Model(t.Dinov2Config(**vision, **sized)), image, name="Dinov2Model")
    yield case(lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**vision, **sized)), image, name="CLIPVisionModel")
    sizes = {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "image_size": 16,
        "patch_size": 2,
    }
    yield case(lambda: t.SwinModel(t.SwinConfig(**sizes)), image, name="SwinModel")
    stages = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}
    yield case(lambda: t.ResNetModel(t.ResNetConfig(**stages, layer_type="basic")), image, name="ResNetModel")
    stages = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    yield case(
        lambda: t.ConvNextModel(t.ConvNextConfig(**stages)), torch.randn(2, 3, 32, 32), name="ConvNextModel"
    )


def of_x_transformers() -> Iterator[Case]:
    """Attention layers with its many options, and whole models."""
    import x_transformers as t

    x, ids = torch.randn(2, 7, 32), torch.randint(0, 64, (2, 7))
    small = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
    for option in (
        "",
        "rotary_pos_emb",
        "alibi_pos_bias",
        "rel_pos_bias",
        "use_rmsnorm",
        "ff_glu",
        "attn_qk_norm",
    ):
        options = small | ({option: True} if option else {})
        yield case(t.Encoder, x, name=f"Encoder({option})", **options)
    for option in (
        "attn_pre_talking_heads",
        "gate_residual",
        "sandwich_norm",
        "macaron",
        "attn_gate_values",
        "shift_tokens",
    ):
        yield case(t.Decoder, x, name=f"Decoder({option})", **(small | {option: 1}))
    yield case(t.FeedForward, x, dim=32, glu=True)
    yield case(t.Attention, x, dim=32, heads=4, dim_head=8)
    whole = lambda: t.TransformerWrapper(num_tokens=64, max_seq_len=16, attn_layers=t.Decoder(**small))
    yield case(whole, ids, name="TransformerWrapper")
    yield case(lambda: t.AutoregressiveWrapper(whole()), ids, name="AutoregressiveWrapper")
    vit = lambda: t.ViTransformerWrapper(
        image_size=16, patch_size=4, num_classes=5, attn_layers=t.Encoder(**small)
    )
    yield case(vit, torch.randn(2, 3, 16, 16), name="ViTransformerWrapper")


def of_torch_geometric() -> Iterator[Case]:
    """Layers over a small graph."""
    from torch_geometric import nn as g

    x, batch = torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 1])
    edges = torch.tensor([[0, 1, 2, 0, 3, 4, 5, 3], [1, 2, 0, 2, 4, 5, 3, 5]])
    kinds = (
        "GCNConv SAGEConv GATConv GATv2Conv GraphConv TAGConv LEConv ClusterGCNConv TransformerConv SuperGATConv "
    )
    kinds += "ARMAConv SGConv MFConv LGConv FeaStConv EGConv GENConv ResGatedGraphConv GeneralConv FiLMConv"
    for kind in kinds.split():
        yield case(getattr(g, kind), x, edges, made=() if kind == "LGConv" else (8, 8), name=kind)
    yield case(g.ChebConv, x, edges, made=(8, 5), K=2)
    yield case(g.GINConv, x, edges, made=(nn.Linear(8, 5),), name="GINConv, of one shared nn")
    yield case(lambda: g.GINConv(nn.Linear(8, 5), train_eps=True), x, edges, name="GINConv")
    yield case(g.APPNP, x, edges, K=2, alpha=0.1)
    yield case(g.GatedGraphConv, x, edges, made=(8, 2))
    yield case(g.AGNNConv, x, edges)
    yield case(g.PNAConv, x, edges, made=(8, 8, ["mean", "max"], ["identity"], torch.tensor([0, 4, 2])))
    yield case(g.GCN, x, edges, made=(8, 8, 2, 5), name="GCN")
    yield case(g.GAT, x, edges, made=(8, 8, 2, 5), name="GAT")
    yield case(g.GraphNorm, x, batch, made=(8,))
    yield case(g.GraphSizeNorm, x, batch)
    yield case(g.PairNorm, x, batch)
    yield case(g.InstanceNorm, x, batch, made=(8,))
    yield case(g.DiffGroupNorm, x, made=(8, 2))
    yield case(g.SumAggregation, x, batch)
    yield case(g.SoftmaxAggregation, x, batch, learn=True)
    yield case(g.AttentionalAggregation, x, batch, made=(nn.Linear(8, 1),), name="AttentionalAggregation")
    yield case(g.Set2Set, x, batch, made=(8, 2))
    yield case(g.TopKPooling, x, edges, made=(8,))
    yield case(g.SAGPooling, x, edges, made=(8,))


def of_e3nn() -> Iterator[Case]:
    """Equivariant layers."""
    from e3nn import nn as en
    from e3nn import o3

    irreps = o3.Irreps("4x0e + 2x1o")
    x, y = irreps.randn(3, -1), o3.Irreps("0e + 1o").randn(3, -1)
    yield case(o3.Linear, x, made=(irreps, "3x0e + 2x1o"))
    yield case(o3.FullyConnectedTensorProduct, x, y, made=(irreps, "0e + 1o", "3x0e + 2x1o"))
    yield case(o3.FullTensorProduct, x, y, made=(irreps, "0e + 1o"))
    yield case(o3.ElementwiseTensorProduct, x, x, made=(irreps, irreps))
    yield case(o3.TensorSquare, x, made=(irreps,))
    yield case(o3.Norm, x, made=(irreps,))
    yield case(o3.SphericalHarmonics, torch.randn(3, 3), made=([0, 1, 2], True))
    yield case(en.BatchNorm, x, made=(irreps,), name="BatchNorm")
    yield case(en.Dropout, x, made=(irreps,), p=0.5, name="Dropout")
    yield case(en.Gate, torch.randn(3, 12), made=("4x0e", [torch.relu], "2x0e", [torch.sigmoid], "2x1o"))
    yield case(en.FullyConnectedNet, torch.randn(3, 8), made=([8, 16, 4], torch.tanh))
    yield case(en.NormActivation, x, made=(irreps, torch.sigmoid))
    yield case(en.Activation, torch.randn(3, 4), made=("4x0e", [torch.tanh]))
    yield case(en.S2Activation, o3.Irreps("0e + 1o").randn(3, -1), made=("0e + 1o", torch.tanh, 8))


def of_diffusers() -> Iterator[Case]:
    """Blocks, and whole models."""
    import diffusers as d
    from diffusers.models import attention, downsampling, embeddings, normalization, resnet, upsampling

    x, emb, image = torch.randn(2, 7, 16), torch.randn(2, 16), torch.randn(2, 8, 8, 8)
    yield case(resnet.ResnetBlock2D, image, emb, in_channels=8, out_channels=8, temb_channels=16, groups=4)
    yield case(downsampling.Downsample2D, image, channels=8, use_conv=True)
    yield case(upsampling.Upsample2D, image, channels=8, use_conv=True)
    yield case(attention.BasicTransformerBlock, x, dim=16, num_attention_heads=2, attention_head_dim=8)
    yield case(attention.FeedForward, x, dim=16)
    yield case(embeddings.Timesteps, torch.tensor([1, 5]), made=(16, True, 0))
    yield case(embeddings.TimestepEmbedding, emb, made=(16, 32))
    yield case(
        embeddings.PatchEmbed,
        torch.randn(2, 3, 16, 16),
        height=16,
        width=16,
        patch_size=4,
        embed_dim=16,
        in_channels=3,
    )
    yield case(embeddings.GaussianFourierProjection, torch.rand(2) + 0.5, embedding_size=8)
    yield case(normalization.RMSNorm, x, made=(16, 1e-6, True), name="RMSNorm")
    yield case(normalization.AdaLayerNormZero, x, made=(16,), kwargs={"emb": emb})
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    down = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    picture, step = torch.randn(2, 3, 8, 8), torch.tensor([1, 5])
    yield case(
        d.UNet2DModel, picture, step, sample_size=8, layers_per_block=1, attention_head_dim=4, **blocks, **down
    )
    cross = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16}
    cross |= {
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "layers_per_block": 1,
    }
    yield case(d.UNet2DConditionModel, torch.randn(2, 4, 8, 8), step, x, sample_size=8, **cross, **blocks)
    coder = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    yield case(d.AutoencoderKL, picture, sample_size=8, **coder, **blocks)
    tiny = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    tiny |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    yield case(d.AutoencoderTiny, torch.rand(2, 3, 8, 8), **tiny)


def of_monai() -> Iterator[Case]:
    """Blocks, networks and losses."""
    from monai import losses
    from monai.networks import blocks, nets

    image, x = torch.randn(2, 1, 32, 32), torch.randn(2, 7, 16)
    plane = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    levels = {"channels": (4, 8, 16), "strides": (2, 2)}
    yield case(nets.UNet, image, **plane, **levels, num_res_units=1)
    yield case(nets.AttentionUnet, image, **plane, **levels)
    yield case(nets.BasicUNet, image, **plane, features=(4, 4, 8, 8, 16, 4))
    yield case(nets.SegResNet, image, **plane, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    yield case(nets.DenseNet, image, **plane, init_features=8, growth_rate=4, block_config=(2, 2))
    yield case(nets.UNETR, image, **plane, img_size=32, feature_size=8, hidden_size=24, mlp_dim=32, num_heads=4)
    vit = {"in_channels": 1, "img_size": 32, "patch_size": 8, "hidden_size": 16, "mlp_dim": 32, "num_layers": 2}
    yield case(nets.ViT, image, **vit, num_heads=4, spatial_dims=2)
    layers = ({"name": "conv_0", "n_features": 4, "kernel_size": 3},)
    layers += (
        {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 1},
        {"name": "conv_1", "n_features": 4, "kernel_size": 1},
        {"name": "conv_2", "kernel_size": 1},
    )
    yield case(nets.HighResNet, image, **plane, layer_params=layers)
    yield case(nets.AutoEncoder, image, **plane, channels=(4, 8), strides=(2, 2))
    yield case(nets.DynUNet, image, **plane, kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2))
    yield case(nets.FullyConnectedNet, torch.randn(3, 8), in_channels=8, out_channels=4, hidden_channels=(8,))
    yield case(blocks.SABlock, x, hidden_size=16, num_heads=4)
    yield case(blocks.MLPBlock, x, hidden_size=16, mlp_dim=32)
    yield case(blocks.TransformerBlock, x, hidden_size=16, mlp_dim=32, num_heads=4)
    yield case(blocks.Convolution, image, spatial_dims=2, in_channels=1, out_channels=4)
    yield case(blocks.ResidualUnit, image, spatial_dims=2, in_channels=1, out_channels=4)
    yield case(blocks.ChannelSELayer, torch.randn(2, 8, 8, 8), spatial_dims=2, in_channels=8)
    target = torch.randint(0, 2, (2, 3, 8, 8)).float()
    for loss in ("DiceLoss", "DiceCELoss", "FocalLoss", "TverskyLoss", "GeneralizedDiceLoss"):
        yield case(getattr(losses, loss), torch.randn(2, 3, 8, 8), target)
    yield case(losses.SSIMLoss, torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16), spatial_dims=2)


def of_kornia() -> Iterator[Case]:
    """Filters, losses and feature modules."""
    from kornia import color, feature, filters, losses

    image, other = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    kinds = [
        (filters.GaussianBlur2d, ((3, 3), (1.0, 1.0))),
        (filters.BoxBlur, ((3, 3),)),
        (filters.MedianBlur, ((3, 3),)),
    ]
    kinds += [
        (filters.Sobel, ()),
        (filters.SpatialGradient, ()),
        (filters.Laplacian, (3,)),
        (filters.UnsharpMask, ((3, 3), (1.0, 1.0))),
    ]
    kinds += [
        (filters.MotionBlur, (3, 35.0, 0.5)),
        (filters.BilateralBlur, ((3, 3), 0.1, (1.0, 1.0))),
        (filters.BlurPool2D, (3,)),
    ]
    kinds += [(filters.MaxBlurPool2D, (3,)), (filters.Canny, ())]
    kinds += [(color.RgbToLab, ()), (color.RgbToHsv, ()), (color.RgbToGrayscale, ()), (color.RgbToYcbcr, ())]
    for kind, made in kinds:
        yield case(kind, image, made=made)
    yield case(losses.SSIMLoss, image, other, made=(3,))
    yield case(losses.MS_SSIMLoss, torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    yield case(losses.PSNRLoss, image, other, made=(1.0,))
    yield case(losses.TotalVariation, image)
    yield case(losses.CharbonnierLoss, image, other)
    yield case(losses.WelschLoss, image, other)
    yield case(losses.CauchyLoss, image, other)
    target = torch.randint(0, 3, (2, 16, 16))
    yield case(losses.DiceLoss, torch.randn(2, 3, 16, 16), target)
    yield case(losses.FocalLoss, torch.randn(2, 3, 16, 16), target, alpha=0.5)
    yield case(losses.LovaszSoftmaxLoss, torch.randn(2, 3, 16, 16), target)
    patches = torch.rand(3, 1, 32, 32)
    for descriptor in ("HardNet", "TFeat", "SOSNet", "HyNet"):
        yield case(getattr(feature, descriptor), patches, pretrained=False)
    yield case(feature.SIFTDescriptor, torch.rand(3, 1, 41, 41))
    yield case(feature.MKDDescriptor, patches, whitening=None)
    yield case(feature.CornerHarris, image, made=(0.04,))
    yield case(feature.CornerGFTT, image)
    yield case(feature.BlobHessian, image)
    yield case(feature.PatchDominantGradientOrientation, patches)


def of_timm() -> Iterator[Case]:
    """Its `test_*` models."""
    import timm

    for name in timm.list_models("test_*"):
        size = timm.get_pretrained_cfg(name).input_size
        yield case(timm.create_model, torch.randn(2, *size), made=(name,), name=name, num_classes=5)


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "torch": of_torch,
    "transformers": of_transformers,
    "x-transformers": of_x_transformers,
    "torch-geometric": of_torch_geometric,
    "e3nn": of_e3nn,
    "diffusers": of_diffusers,
    "monai": of_monai,
    "kornia": of_kornia,
    "timm": of_timm,
}
