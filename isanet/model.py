"""ISANet (Interlaced Sparse Self-Attention, arXiv 1907.12273): the network, top to bottom.

Shape legend:

    N batch            C channels          H, W feature map, padded to whole blocks
    P, Q blocks        R, S positions in a block (H = P*R, W = Q*S; R = S = block_size)
    G groups           L positions in a group: each attends to all others of its group
    K classes

A feature map read as x_NCPRQS has two natural groupings. Long range: one position (r, s) of every
block, so G = R*S and L = P*Q. Short range: every position of one block, so G = P*Q and L = R*S. One
after the other they connect all positions, at a small part of the cost of dense attention.

Published ISANets differ as networks; every difference is an argument, declared in `isanet.config`.
"""

from __future__ import annotations

import operator
import os
from inspect import signature
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.attention import AttentionMaps, ConvBNReLU, GroupedAttention, block_padding
from isanet.backbone import ResNet, checkpointed
from isanet.config import ATTENTIONS, BACKBONES, ISANetConfig, LogitsResize
from isanet.labels import named_classes


class Features(NamedTuple):
    """Feature maps of one forward pass of an ISANet; h = H/8 and w = W/8, rounded up.

    With `maxpool_ceil` an axis of 8n or 8n - 1 pixels has one position more, n + 1.

    Attributes:
        stages: The maps of the backbone's four stages, of strides 4, 8, 8, 8: (N, C, H/4, W/4), and (N, 2 * C, h, w),
            (N, 4 * C, h, w), (N, 8 * C, h, w); C is 256 in all published models but ResNet-18, where it is 64.
        residual: (N, head_channels, h, w): the last stage reduced, which is the input of attention.
        context: (N, head_channels, h, w): what attention makes of it.
    """

    stages: tuple[Tensor, Tensor, Tensor, Tensor]
    residual: Tensor
    context: Tensor


STRIDE = 8
"""Pixels of a position of the feature map, along each axis."""


def check_images(images: Tensor) -> None:
    """Raise ValueError or TypeError unless `images` is a batch of floating-point RGB images."""
    advice = "isanet.Segmenter(model)(image) takes images as they are: files, PIL images, uint8 RGB arrays"
    if not isinstance(images, Tensor):
        raise TypeError(f"expected a tensor of normalized images (N, 3, H, W), got {type(images).__name__}; {advice}")
    # A trace would warn of a comparison of sizes
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if images.ndim != 4 or (not tracing and images.shape[1] != 3) or not images.is_floating_point():
        raise ValueError(
            f"expected normalized floating-point images of shape (N, 3, H, W), got {tuple(images.shape)} of "
            f"{images.dtype}; {advice}; isanet.images.preprocess.preprocess makes such a tensor of one"
        )


def unwrapped(model: nn.Module) -> Any:
    """A network without the wrappers of DataParallel, DistributedDataParallel and torch.compile around it."""
    network: Any = model
    while isinstance(inner := getattr(network, "module", getattr(network, "_orig_mod", None)), nn.Module):
        network = inner
    if not isinstance(network, nn.Module) or not hasattr(network, "preprocessing"):  # others may be alike
        own = "; pass its attribute `model`" if isinstance(getattr(model, "model", None), ISANet) else ""
        raise ValueError(f"expected an ISANet, or where one is stored, got {type(model).__name__}{own}")
    return network


def resize_logits(logits_NKHW: Tensor, size: tuple[int, int], how: LogitsResize) -> Tensor:
    """(N, K, H, W) -> (N, K, *size), bilinear.

    Position x along an axis of the result, of `size` positions, samples the H positions of the logits at

    * "half_pixel": (x + 1/2) H / size - 1/2, as `torch.nn.functional.interpolate` does without `align_corners`,
    * "corners": x (H - 1) / (size - 1), as with them,
    * "asymmetric": x H / size (Paddle's `align_mode=1`); beyond the last position its value is taken again.
    """
    # Of corners, torch.export would pin whether the size is one
    exporting = torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export()
    if how == "half_pixel" or (how == "corners" and not exporting):
        return F.interpolate(logits_NKHW, size=size, mode="bilinear", align_corners=how == "corners")
    for dim in (2, 3):
        length, target = logits_NKHW.shape[dim], size[dim - 2]
        scale: tuple[Any, Any] = (length - 1, torch.sym_max(target - 1, 1)) if how == "corners" else (length, target)
        positions = torch.arange(target, device=logits_NKHW.device) * scale[0]  # whole: half precision has 8 bits
        before, share = positions // scale[1], (positions % scale[1]).to(logits_NKHW.dtype) / scale[1]
        first, second = (logits_NKHW.index_select(dim, index) for index in (before, (before + 1).clamp(max=length - 1)))
        logits_NKHW = torch.lerp(first, second, share.view(-1, *[1] * (3 - dim)))
    return logits_NKHW


class ISANet(nn.Module):
    """Interlaced Sparse Self-Attention Network; keyword-only, every argument a plain value that survives JSON.

    `ISANet(**model.config)` builds the same network again. Batch norm is `nn.BatchNorm2d`, whatever the weights were
    trained with; `nn.SyncBatchNorm.convert_sync_batchnorm` may be applied.

    >>> small = isanet.ISANet(backbone="resnet26", width=16, classes=["road", "rest"])  # randomly initialized
    >>> small(torch.zeros(1, 3, 64, 128)).shape
    torch.Size([1, 2, 64, 128])

    Args:
        **arguments: Those of `isanet.config.ISANetConfig`, which explains and checks them.

    Attributes:
        config: All arguments, ready for JSON.
        classes, palette, label_space, preprocessing, protocol, logits_resize, residual_first, block_size,
            attention_order: As the arguments.
        provenance: Where the weights came from, as far as it is known; `isanet.from_pretrained` fills it in.

    Raises:
        ValueError: An argument is out of its range, or two contradict each other.
        TypeError: An unknown argument.
    """

    __signature__ = signature(ISANetConfig)  # for help() and editors

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        config = ISANetConfig(**arguments)
        self.config = config.to_dict()
        self.provenance: dict[str, str] = {}
        self.classes = tuple(config.classes)
        self.palette = tuple((red, green, blue) for red, green, blue in config.palette)
        self.label_space = config.label_space
        self.preprocessing = self.config["preprocessing"]
        self.protocol = config.protocol
        self.logits_resize = config.logits_resize
        self.residual_first = config.residual_first
        self.block_size = config.block_size
        self.attention_order = tuple(config.attention_order)

        channels, slope = config.head_channels, config.leaky_slope
        stage3_channels = 4 * BACKBONES[config.backbone].expansion * config.width
        self.backbone = ResNet(config)
        self.reduce = ConvBNReLU(2 * stage3_channels, channels, 3, slope)
        for name in ATTENTIONS:  # not in their order, so that a seed gives the same weights in either
            if name in self.attention_order:
                self.add_module(name, GroupedAttention(config, name))
        self.fuse = ConvBNReLU(2 * channels, channels, config.fusion_kernel, slope)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(channels, config.num_classes, 1)
        self.aux_reduce = ConvBNReLU(stage3_channels, config.aux_channels, 3, slope)
        self.aux_classifier = nn.Conv2d(config.aux_channels, config.num_classes, 1)
        self.gradient_checkpointing = config.gradient_checkpointing
        self._initialize()

    def _initialize(self) -> None:
        if self.classifier.weight.is_meta:  # without values; torch would import its tracer, which takes seconds
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for classifier in (self.classifier, self.aux_classifier):
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training trades time for memory; may be set at any time."""
        return self.backbone.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.backbone.gradient_checkpointing = value
        self.config["gradient_checkpointing"] = value

    @overload
    def forward(self, images: Tensor, aux: Literal[False] = ..., size: tuple[int, int] | None = ...) -> Tensor: ...

    @overload
    def forward(
        self, images: Tensor, aux: Literal[True], size: tuple[int, int] | None = ...
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, images: Tensor, aux: bool = False, size: tuple[int, int] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of every class at every pixel.

        >>> logits, aux = model(images, aux=True)
        >>> images.shape, logits.shape
        (torch.Size([2, 3, 64, 128]), torch.Size([2, 11, 64, 128]))

        Args:
            images: (N, 3, H, W), floating point, normalized (see `isanet.images.preprocess`); H, W >= 1.
            aux: Also return the auxiliary head's logits, for training.
            size: (height, width) of the result, the input's if left out. Upstream resizes logits once, straight to
                the size of the image before preprocessing.

        Returns:
            (N, K, height, width), or two of them with `aux`; unbounded logits, in the dtype of the computation (with
            `aux`, at least float32).

        Raises:
            TypeError: `images` is not a tensor; `isanet.Segmenter(model)` takes files, PIL images and arrays.
            ValueError: `images` is not a batch of floating-point RGB images.
        """
        check_images(images)
        if size is None:
            size = (images.shape[-2], images.shape[-1])
        if aux:
            # Training often runs in half precision and channels last: neither suits what follows, resizing and loss
            logits, aux_logits = (
                self.resize((x if x.dtype == torch.float64 else x.float()).contiguous(), size)
                for x in self.coarse_logits(images, aux=True)
            )
            return logits, aux_logits
        return self.resize(self.coarse_logits(images), size)

    @overload
    def coarse_logits(self, images: Tensor, *, aux: Literal[False] = ...) -> Tensor: ...

    @overload
    def coarse_logits(self, images: Tensor, *, aux: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def coarse_logits(self, images: Tensor, *, aux: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """As `forward`, before any resizing: (N, K, H/8, W/8), rounded up.

        >>> model.coarse_logits(images).shape
        torch.Size([2, 11, 8, 16])
        """
        check_images(images)
        stage3, stage4 = self.backbone(images)
        residual = self.reduce(stage4)
        context = self.attend(residual)
        both = (residual, context) if self.residual_first else (context, residual)
        logits: Tensor = self.classifier(self.dropout(self.fuse(torch.cat(both, dim=1))))
        if not aux:
            return logits
        aux_logits: Tensor = self.aux_classifier(self.dropout(self.aux_reduce(stage3)))
        return logits, aux_logits

    def features(self, images: Tensor) -> Features:
        """The feature maps behind the logits, of images as `forward` takes them; with gradients, if there are any.

        >>> features = model.features(images)
        >>> [stage.shape[-1] for stage in features.stages]
        [32, 16, 16, 16]

        Raises:
            ValueError: `images` is not a batch of floating-point RGB images.
        """
        check_images(images)
        stages = self.backbone.stages(images)
        residual = self.reduce(stages[-1])
        return Features(stages, residual, self.attend(residual))

    def attention(self, images: Tensor, position: tuple[int, int]) -> AttentionMaps:
        """What one position of the images attends to, in each range and in both together.

        `isanet.viz.attention` draws it.

        >>> maps = model.attention(images, (40, 64))
        >>> maps.product[:, *maps.inside].shape
        torch.Size([2, 8, 16])

        Args:
            images: As `forward` takes them.
            position: (row, column) of a pixel of the images; what attends is the cell of 8x8 pixels that it lies in.
                With `maxpool_ceil` the last row and column of cells may lie outside.

        Raises:
            ValueError: `images` is not a batch of floating-point RGB images, or the position is outside of them.
        """
        check_images(images)
        (row, column), (height, width) = map(operator.index, position), images.shape[-2:]
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"position must be (row, column) of a pixel of {height} rows x {width} columns, got {position}"
            )
        x = self.reduce(self.backbone(images)[1])
        b, (h, w) = self.block_size, x.shape[-2:]
        top, bottom, _ = block_padding(h, b)
        left, right, Q = block_padding(w, b)
        x = F.pad(x, (left, right, top, bottom))
        like = x[:, :1]
        row, column = top + row // STRIDE, left + column // STRIDE
        block, phase = row // b * Q + column // b, row % b * b + column % b
        maps: dict[str, Tensor] = {}
        for name in self.attention_order:
            attention = getattr(self, name)
            # A position's group in the one range is its number inside its group in the other
            group, index = (phase, block) if name == "long_range" else (block, phase)
            rows_NGL = attention.weights(x, index)
            own_NGL = torch.zeros_like(rows_NGL)
            own_NGL[:, group] = rows_NGL[:, group]
            maps[name] = attention.ungroup(own_NGL[..., None], like)[:, 0]
            if len(maps) == 1:
                x, first, first_NGL, product = attention(x), attention, rows_NGL, maps[name]
            else:  # so what the position attends to last is number `index` of each group before
                product = first.ungroup((first_NGL * rows_NGL[:, group, :, None])[..., None], like)[:, 0]
        inside = (slice(top, top + h), slice(left, left + w))
        return AttentionMaps(maps.get("long_range"), maps.get("short_range"), product, inside, (row, column), b)

    def attend(self, x_NCHW: Tensor) -> Tensor:
        """The map that attention makes of `Features.residual`, of the same shape.

        >>> model.attend(model.features(images).residual).shape[-2:]
        torch.Size([8, 16])
        """
        height, width = x_NCHW.shape[-2:]
        top, bottom, P = block_padding(height, self.block_size)
        left, right, Q = block_padding(width, self.block_size)
        # Zeros take part in attention, as they did in training. One block too many is added and cut off again, and the
        # end is a padding below zero rather than a slice, because with dynamic sizes torch.export would pin whether a
        # padding is zero and whether a slice is the whole.
        b = self.block_size
        x = F.pad(x_NCHW, (left, right + b, top, bottom + b))[..., : P * b, : Q * b]
        for name in self.attention_order:
            attention = getattr(self, name)
            x = checkpointed(attention, x) if self.gradient_checkpointing and self.training else attention(x)
        return F.pad(x, (-left, -right, -top, -bottom))

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, K, h, w) -> (N, K, *size), by `resize_logits` as the model was trained.

        >>> model.resize(model.coarse_logits(images), (480, 640)).shape
        torch.Size([2, 11, 480, 640])
        """
        return resize_logits(logits, size, self.logits_resize)

    def extra_repr(self) -> str:
        """The first line of the network's `repr`: its classes.

        >>> model.extra_repr()
        '11 classes: road, sidewalk, building, …'
        """
        return named_classes(self.classes)

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: a trace, which holds for all sizes, as no step depends on values."""
        if self.training:
            raise ValueError("torch.jit.script takes an ISANet in evaluation mode: call model.eval() first")
        images = self.classifier.weight.new_zeros(2, 3, 65, 65)
        return nn.Sequential(torch.jit.trace(self, images, check_trace=False))  # type: ignore[no-untyped-call]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and, if there is none yet, a model card into a folder.

        Of a network in DataParallel or another wrapper: `ISANet.save_pretrained(wrapped, folder)`.

        >>> model.save_pretrained("mine")
        >>> isanet.from_pretrained("mine").classes == model.classes
        True

        Raises:
            OutputError: The folder cannot be written; earlier files are unchanged.
        """
        from isanet.weights import convert, hub

        network = unwrapped(self)
        hub.save_pretrained(folder, convert.unwrap(network.state_dict()), network.config, network.provenance)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Publish on the Hugging Face Hub and return the address; see `isanet.weights.hub.push_to_hub`.

        >>> model.push_to_hub("org/streets", token=token)  # or None after `hf auth login`
        'http.../org/streets'
        """
        from isanet.weights import convert, hub

        network = unwrapped(self)
        state = convert.unwrap(network.state_dict())
        pushed = hub.push_to_hub(repo_id, state, network.config, network.provenance, private=private, token=token)
        return pushed.address
