"""ADM (Dhariwal & Nichol 2021, arXiv:2105.05233) as EDM trains it (arXiv:2206.00364)."""

from genfield import registry
from genfield.nets import layers, unet
from genfield.nets.edm_unet import MAX_PERIOD, LabelLinear
from genfield.nets.initial import constant, normal
from genfield.registry import Fraction, NotNegativeInt, PositiveInt


class ADM(unet.UNet):
    """ADM on [B, H, W, C], by default ImageNet-64's: 295,899,267 parameters with 1000 classes.

    It is the `UNet` that resamples in ResBlocks; the null class adds nothing to the embedding.

    Fields: UNet's of these names, and
      augmentation_size: numbers that tell how an image was augmented (9: `data.augment`) or 0.
      head_channels: a width of w has w // head_channels heads, which are wider where that leaves
        channels over.
      middle_attention: whether pixels attend in the middle; EDM's do where it has 64 channels.
      learned_variance: the last layer has as many channels again, which are left out here (of
        published weights: Nichol & Dhariwal 2021, arXiv:2102.09672).
    Raises:
      UserError: as UNet.
    """

    wider_heads = True

    def __init__(
        self,
        *,
        channels=192,
        channel_multipliers: tuple[PositiveInt, ...] = (1, 2, 3, 4),
        num_res_blocks: NotNegativeInt = 3,
        attention_levels=(2, 4, 8),
        head_channels=64,
        dropout: Fraction = 0.1,
        smallest_group: PositiveInt = unet.SMALLEST_GROUP,
        augmentation_size: NotNegativeInt = 0,
        middle_attention=True,
        learned_variance=False,
        dtype="float32",
        attention="xla",
        remat: layers.Remat = False,
        shape,
        num_classes,
        rngs,
    ):
        self.middle_attention = middle_attention
        super().__init__(
            channels=channels,
            channel_multipliers=channel_multipliers,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels,
            head_channels=head_channels,
            resampling="block",
            dropout=dropout,
            max_period=MAX_PERIOD,
            smallest_group=smallest_group,
            dtype=dtype,
            attention=attention,
            remat=remat,
            shape=shape,
            num_classes=num_classes,
            rngs=rngs,
        )
        self.augmentation_size, self.outputs = augmentation_size, shape[-1]
        sizes = augmentation_size, channels, constant(0.0), None
        self.augmentation = layers.linear(*sizes, rngs=rngs) if augmentation_size else None
        if learned_variance:
            width = channels * channel_multipliers[0]
            self.last = layers.torch_conv(width, 2 * shape[-1], 3, rngs=rngs, zero=True)

    def __call__(self, x, t, cond, rngs=None, augmentation=None):
        return super().__call__(x, t, cond, rngs, augmentation)[..., : self.outputs]

    @staticmethod
    def label_rows(num_classes, size, *, rngs):
        return LabelLinear(num_classes, size, normal(1.0), use_bias=False, rngs=rngs)


METHOD = registry.Network(
    name="adm",
    make=ADM,
    second_order=lambda bound: None,
    last_layer=("last", "kernel"),
    stack=(),
    blocks=unet.BLOCKS,
    augmented=True,
)
