"""ADM (Dhariwal & Nichol 2021, arXiv:2105.05233) as EDM trains it (arXiv:2206.00364)."""

from genfield import registry
from genfield.nets import layers, unet
from genfield.nets.edm_unet import MAX_PERIOD, LabelLinear
from genfield.nets.initial import normal
from genfield.registry import Fraction


class ADM(unet.UNet):
    """ADM on [B, H, W, C], by default ImageNet-64's: 295,899,267 parameters with 1000 classes.

    It is the `UNet` that resamples in ResBlocks; the null class adds nothing to the embedding.

    Fields: UNet's of these names.
    Raises:
      UserError: as UNet.
    """

    def __init__(
        self,
        *,
        channels=192,
        channel_multipliers=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_levels=(2, 4, 8),
        head_channels=64,
        dropout: Fraction = 0.1,
        dtype="float32",
        attention="xla",
        remat: layers.Remat = False,
        shape,
        num_classes,
        rngs,
    ):
        super().__init__(
            channels=channels,
            channel_multipliers=channel_multipliers,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels,
            head_channels=head_channels,
            resampling="block",
            dropout=dropout,
            max_period=MAX_PERIOD,
            dtype=dtype,
            attention=attention,
            remat=remat,
            shape=shape,
            num_classes=num_classes,
            rngs=rngs,
        )

    @staticmethod
    def label_rows(num_classes, size, *, rngs):
        return LabelLinear(num_classes, size, normal(1.0), use_bias=False, rngs=rngs)


METHOD = registry.Network(
    name="adm",
    make=ADM,
    second_order=lambda bound: layers.against_second_order(bound["attention"]),
    last_layer=("last", "kernel"),
    stack=(),
    augmented=False,
)
