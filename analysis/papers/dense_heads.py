"""The dense heads of the papers, layer by layer, by the shapes of their layers; and the backbones
under them.

FLOPs of a benchmark count one image through the heads at inference, with 1000 proposals for
the box heads and the first 100 of them for the mask heads (mmdetection, `forward_dummy` of its
RoI heads), and without UPerNet's auxiliary head, which only trains.  Class counts are those of
COCO (80, and one for the background) and ADE20K (150).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from backbones.specs import variants
from transom.errors import SpecError, nearest

if TYPE_CHECKING:
    from backbones.model.backbone import HierarchicalBackbone

WIDTH = 256  # channels of the FPN, RPN and RoI heads
BOXES, MASKS = 1000, 100  # regions of interest
CLASSES, BOX_SIZE, MASK_SIZE, FC = 80, 7, 14, 1024
ANCHORS = 3
FPN_HEAD = 128  # channels of Semantic FPN's head
PPM_SCALES, PPM_WIDTH, AUX_WIDTH, ADE_CLASSES = (1, 2, 3, 6), 512, 256, 150

Grid = tuple[int, int]


class Layer(NamedTuple):
    """A convolution or a linear layer (kernel 1) of a head.

    positions: how often the kernel is applied to one image, over all levels and regions; of a
    transposed convolution, the positions of its input.  norm: a batch norm follows, and the
    layer then has no bias.  norm_elements: what that norm reads for one image.
    """

    part: str
    name: str
    kernel: int
    inputs: int
    outputs: int
    positions: int
    norm: bool = False
    run: bool = True  # at inference

    @property
    def shape(self) -> str:
        return f"{self.kernel}x{self.kernel} {self.inputs}->{self.outputs} on {self.positions}"

    @property
    def weights(self) -> int:
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def params(self) -> int:
        """Weights, and a bias or the scale and shift of the norm."""
        return self.weights + self.outputs * (2 if self.norm else 1)

    @property
    def macs(self) -> int:
        """Multiply-adds of one image at inference."""
        return self.weights * self.positions if self.run else 0

    @property
    def norm_elements(self) -> int:
        return self.outputs * self.positions if self.norm and self.run else 0


def fpn(dims: Sequence[int], grids: Sequence[Grid]) -> list[Layer]:
    """Lin et al. 2017: a lateral 1x1 and an output 3x3 per level.  P6 is a pooling, so free."""
    levels = list(enumerate(zip(dims, grids, strict=True), start=2))
    lateral = [Layer("fpn", f"lateral{i}", 1, dim, WIDTH, h * w) for i, (dim, (h, w)) in levels]
    return lateral + [Layer("fpn", f"p{i}", 3, WIDTH, WIDTH, h * w) for i, (_, (h, w)) in levels]


def rpn(grids: Sequence[Grid]) -> list[Layer]:
    """Ren et al. 2015 on P2 to P6, one set of weights; P6 is every second pixel of P5."""
    h, w = grids[-1]
    pixels = sum(h * w for h, w in [*grids, (-(-h // 2), -(-w // 2))])
    return [
        Layer("rpn", "conv", 3, WIDTH, WIDTH, pixels),
        Layer("rpn", "objectness", 1, WIDTH, ANCHORS, pixels),
        Layer("rpn", "boxes", 1, WIDTH, 4 * ANCHORS, pixels),
    ]


def box_head(part: str = "box", *, convs: int = 0) -> list[Layer]:
    """RoIAlign 7x7, then two linear layers; or `convs` 3x3 with batch norm and one linear layer,
    the head of Swin's Cascade Mask R-CNN (4conv1f in the names of its configs)."""
    inside = BOXES * BOX_SIZE**2
    layers = [
        Layer(part, f"conv{i}", 3, WIDTH, WIDTH, inside, norm=True) for i in range(1, convs + 1)
    ]
    layers.append(Layer(part, "fc1", 1, BOX_SIZE**2 * WIDTH, FC, BOXES))
    if not convs:
        layers.append(Layer(part, "fc2", 1, FC, FC, BOXES))
    return [
        *layers,
        Layer(part, "classes", 1, FC, CLASSES + 1, BOXES),
        Layer(part, "boxes", 1, FC, 4 * CLASSES, BOXES),
    ]


def mask_head(part: str = "mask") -> list[Layer]:
    """He et al. 2017: RoIAlign 14x14, four 3x3, a 2x2 upsampling to 28x28, a mask per class."""
    inside = MASKS * MASK_SIZE**2
    return [
        *(Layer(part, f"conv{i}", 3, WIDTH, WIDTH, inside) for i in range(1, 5)),
        Layer(part, "deconv", 2, WIDTH, WIDTH, inside),
        Layer(part, "masks", 1, WIDTH, CLASSES, 4 * inside),
    ]


def mask_rcnn(dims: Sequence[int], grids: Sequence[Grid]) -> list[Layer]:
    return [*fpn(dims, grids), *rpn(grids), *box_head(), *mask_head()]


def cascade_mask_rcnn(dims: Sequence[int], grids: Sequence[Grid]) -> list[Layer]:
    """Cai and Vasconcelos 2018 with the box heads of Swin's configs: three box heads with all the
    proposals and three mask heads (mmdetection, `CascadeRoIHead.forward_dummy`)."""
    layers = [*fpn(dims, grids), *rpn(grids)]
    for i in (1, 2, 3):
        layers += [*box_head(f"box{i}", convs=4), *mask_head(f"mask{i}")]
    return layers


def upernet(dims: Sequence[int], grids: Sequence[Grid]) -> list[Layer]:
    """Xiao et al. 2018 as in mmsegmentation's `UPerHead`; the auxiliary `FCNHead` on stage 3 has
    parameters, but no MACs: it is not run at inference."""
    wide, pixels = PPM_WIDTH, [h * w for h, w in grids]
    layers = [
        Layer("ppm", f"pool{scale}", 1, dims[-1], wide, scale**2, norm=True) for scale in PPM_SCALES
    ]
    joined = dims[-1] + len(PPM_SCALES) * wide
    layers.append(Layer("ppm", "bottleneck", 3, joined, wide, pixels[-1], norm=True))
    lower = list(enumerate(zip(dims[:-1], pixels[:-1], strict=True), start=1))
    layers += [Layer("fpn", f"lateral{i}", 1, dim, wide, n, norm=True) for i, (dim, n) in lower]
    layers += [Layer("fpn", f"conv{i}", 3, wide, wide, n, norm=True) for i, (_, n) in lower]
    return [
        *layers,
        Layer("fpn", "bottleneck", 3, len(dims) * wide, wide, pixels[0], norm=True),
        Layer("head", "classes", 1, wide, ADE_CLASSES, pixels[0]),
        Layer("auxiliary", "conv", 3, dims[-2], AUX_WIDTH, pixels[-2], norm=True, run=False),
        Layer("auxiliary", "classes", 1, AUX_WIDTH, ADE_CLASSES, pixels[-2], run=False),
    ]


def semantic_fpn(dims: Sequence[int], grids: Sequence[Grid]) -> list[Layer]:
    """Kirillov et al. 2019 as in mmsegmentation's `FPNHead`: every level has 3x3 convolutions, each
    followed by an upsampling (the finest level's is not), up to the finest grid."""
    layers, wide = fpn(dims, grids), FPN_HEAD
    for i in range(len(dims)):
        for j in range(max(i, 1)):
            h, w = grids[i - j]
            inputs = wide if j else WIDTH
            layers.append(Layer("head", f"p{i + 2}.conv{j}", 3, inputs, wide, h * w, norm=True))
    h, w = grids[0]
    return [*layers, Layer("head", "classes", 1, wide, ADE_CLASSES, h * w)]


METHODS = {
    "Mask R-CNN": mask_rcnn,
    "Cascade Mask R-CNN": cascade_mask_rcnn,
    "UPerNet": upernet,
    "Semantic FPN": semantic_fpn,
}


def layers(method: str, dims: Sequence[int], grids: Sequence[Grid]) -> list[Layer]:
    """The layers of a method of `METHODS` on four maps, finest first.

    dims: channels of the maps.  grids: their (height, width).  Raises SpecError.
    """
    if method not in METHODS:
        raise SpecError(f"no head is called {method!r}{nearest(method, METHODS)}")
    if not len(dims) == len(grids) == 4:
        raise SpecError(f"{method}: stands on 4 maps, not on {len(dims)} with {len(grids)} grids")
    return METHODS[method](dims, grids)


# -- the backbone ----------------------------------------------------------------------------


class Norms(NamedTuple):
    """Elements that norms read in one forward of one image, by kind."""

    layer: int
    batch: int


@lru_cache
def backbone(name: str, dense: bool) -> HierarchicalBackbone:
    """A variant on the meta device.

    dense: as in a detector, without a head, and with a norm per level instead of the final norm in
    families that have one.
    """
    import torch

    from backbones.factory import create

    spec = variants.get(name).spec
    with torch.device("meta"):
        if not dense:
            return create(spec)
        body = {"num_classes": 0, "head": "linear", "final_norm": False}
        return create(spec, **body, out_norms=spec.final_norm)


def norm_elements(model: HierarchicalBackbone, h: int, w: int) -> Norms:
    """Elements that the norms of a backbone on the meta device read for one image of h x w pixels;
    with out_norms, in `features`."""
    import torch
    from torch import nn

    elements: Counter[type] = Counter()
    kinds = (nn.LayerNorm, nn.BatchNorm2d)
    hooks = [
        module.register_forward_hook(
            lambda module, args, _: elements.update({type(module): args[0].numel()})
        )
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    image = torch.empty(1, model.spec.in_channels, h, w, device="meta")
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            model.features(image) if model.spec.out_norms else model(image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Norms(*(elements[kind] for kind in kinds))
