"""Makes published.npz: what EDM's networks and flow_matching's U-Net give, computed by PyTorch.

    python tests/golden/make_published.py

The networks are written here a second time, as functions of a state dict under its published names,
so that they share nothing with genfield's. They agree to 1e-6 with the published code on its own
random weights. Weights are drawn by published_weights.py, so that the file holds names and shapes
alone.
Needs torch, which genfield does not.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from published_weights import weights_of
from torch.nn import functional as F

OUT = Path(__file__).resolve().parent / "published.npz"
SONG, ADM = "SongUNet", "DhariwalUNet"
FOURIER = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
FOURIER |= {"resample_filter": [1, 3, 3, 1]}
EDM_CASES = {
    "ddpmpp": dict(model_type=SONG, label_dim=3, augment_dim=9, precond="edm"),
    "ncsnpp": dict(model_type=SONG, channel_mult=[1, 2, 1], **FOURIER, precond="ve"),
    "ncsnpp_labels": dict(model_type=SONG, label_dim=2, channel_mult=[2], **FOURIER, precond="edm"),
    "ddpmpp_vp": dict(model_type=SONG, num_blocks=2, attn_resolutions=[8], precond="vp"),
    "adm": dict(model_type=ADM, label_dim=3, augment_dim=9, channel_mult=[1, 8], precond="iddpm"),
    "adm_edm": dict(model_type=ADM, channel_mult=[8], attn_resolutions=[8], precond="edm"),
    # Blocks narrower than 64 do not attend, whatever is asked for; 96 channels are one head.
    "adm_narrow": dict(model_type=ADM, channel_mult=[12, 1], attn_resolutions=[8, 4]),
    "ddpmpp_iddpm": dict(model_type=SONG, label_dim=2, precond="iddpm"),
}
EDM_PLAIN = dict(img_resolution=8, img_channels=3, label_dim=0, model_channels=8)
EDM_PLAIN |= dict(channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4], augment_dim=0)
EDM_PLAIN |= dict(precond="edm")
UNET_CASES = {
    "pool": dict(num_classes=3, num_heads=2, use_new_attention_order=True),
    "conv": dict(conv_resample=True, num_heads=4, use_scale_shift_norm=False),
    "block": dict(resblock_updown=True, num_head_channels=16, attention_resolutions=[1, 2]),
}
UNET_PLAIN = dict(in_channels=3, model_channels=32, out_channels=3, num_res_blocks=1)
UNET_PLAIN |= dict(attention_resolutions=[2], channel_mult=[1, 2], conv_resample=False)
UNET_PLAIN |= dict(num_classes=None, num_heads=1, num_head_channels=-1, resblock_updown=False)
UNET_PLAIN |= dict(use_scale_shift_norm=True, use_new_attention_order=False)


class Weights:
    """What layers ask for by name and shape: noted, and answered with `arrays`, else zeros."""

    def __init__(self, arrays=None):
        self.arrays, self.shapes = arrays, {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        self.shapes[name] = shape
        return torch.zeros(shape) if self.arrays is None else torch.tensor(self.arrays[name])

    def linear(self, name, x, outputs, bias=True):
        weight = self(f"{name}.weight", outputs, x.shape[1])
        return F.linear(x, weight, self(f"{name}.bias", outputs) if bias else None)

    def norm(self, name, x, groups, epsilon):
        size = x.shape[1]
        pair = self(f"{name}.weight", size), self(f"{name}.bias", size)
        return F.group_norm(x, groups, *pair, epsilon)

    def conv(self, name, x, outputs, size, stride=1, extra=0):
        weight = self(f"{name}.weight", outputs, x.shape[1], size, size)
        return F.conv2d(x, weight, self(f"{name}.bias", outputs), stride, size // 2 + extra)


def attend(q, k, v):
    """[N, channels, positions] each."""
    scores = torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(q.shape[1])
    return torch.einsum("nqk,nck->ncq", scores.softmax(2), v)


def waves(t, size, ends_at_last=False):
    """Cosines and sines of the times."""
    half = size // 2
    angles = t[:, None] * 1e-4 ** (torch.arange(half) / (half - ends_at_last))[None]
    return angles.cos(), angles.sin()


# ---- EDM ---------------------------------------------------------------------------------------


class EDM:
    """SongUNet or DhariwalUNet of a constructor's arguments."""

    def __init__(self, config: dict, weights: Weights):
        self.c, self.w, self.song = config, weights, config["model_type"] == SONG
        self.taps = config.get("resample_filter", [1, 1])

    def norm(self, name, x):
        return self.w.norm(name, x, min(32, x.shape[1] // 4), 1e-6 if self.song else 1e-5)

    def resample(self, name, x, how):
        """Up or down by a filter that stands beside the weights."""
        size, channels = len(self.taps), x.shape[1]
        taps = self.w(f"{name}.resample_filter", 1, 1, size, size).tile([channels, 1, 1, 1])
        more = {"groups": channels, "stride": 2, "padding": 0 if how == "fused" else size // 2 - 1}
        return F.conv_transpose2d(x, 4 * taps, **more) if how == "up" else F.conv2d(x, taps, **more)

    def block(self, name, x, embedding, width, how=None, attends=False):
        skip, h = x, F.silu(self.norm(f"{name}.norm0", x))
        if how:
            skip, h = (self.resample(f"{name}.{p}", a, how) for p, a in (("skip", x), ("conv0", h)))
        h = self.w.conv(f"{name}.conv0", h, width, 3)
        twice = 1 if self.song else 2
        shift = self.w.linear(f"{name}.affine", embedding, twice * width)[..., None, None]
        if self.song:
            h = self.norm(f"{name}.norm1", h + shift)
        else:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm(f"{name}.norm1", h) * (1 + scale) + shift
        h = self.w.conv(f"{name}.conv1", F.silu(h), width, 3)
        if x.shape[1] != width or (self.song and how):
            skip = self.w.conv(f"{name}.skip", skip, width, 1)
        less = math.sqrt(0.5) if self.song else 1.0
        h = less * (h + skip)
        heads = 1 if self.song else width // 64
        return less * (h + self.attention(name, h, heads)) if attends and heads else h

    def attention(self, name, x, heads):
        b, c, height, width = x.shape
        qkv = self.w.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x), 3 * c, 1)
        q, k, v = qkv.reshape(b * heads, c // heads, 3, height * width).unbind(2)
        return self.w.conv(f"{name}.proj", attend(q, k, v).reshape(b, c, height, width), c, 1)

    def embedding(self, t, labels, augmentation):
        c, base = self.c, self.c["model_channels"]
        if "embedding_type" in c:
            angles = t[:, None] * (2 * math.pi * self.w("map_noise.freqs", base))[None]
            h = torch.cat([angles.sin(), angles.cos()], dim=1)
        else:
            cosines, sines = waves(t, base, self.song)
            h = torch.cat([sines, cosines] if self.song else [cosines, sines], dim=1)
        if self.song and c["label_dim"]:
            h = h + self.w.linear("map_label", labels * math.sqrt(c["label_dim"]), h.shape[1])
        if c["augment_dim"]:
            h = h + self.w.linear("map_augment", augmentation, h.shape[1], bias=False)
        h = self.w.linear("map_layer0", h, 4 * base)
        h = self.w.linear("map_layer1", F.silu(h), 4 * base)
        if not self.song and c["label_dim"]:
            h = h + self.w.linear("map_label", labels, 4 * base, bias=False)
        return F.silu(h)

    def __call__(self, x, t, labels, augmentation):
        c, e = self.c, self.embedding(t, labels, augmentation)
        widths = [c["model_channels"] * m for m in c["channel_mult"]]
        sides = [c["img_resolution"] >> level for level in range(len(widths))]
        attends, skips, aux = lambda side: side in c["attn_resolutions"], [], x
        for level, (side, width) in enumerate(zip(sides, widths, strict=True)):
            at = f"enc.{side}x{side}"
            if level == 0:
                first = c["model_channels"] if self.song else width
                x = self.w.conv(f"{at}_conv", x, first, 3)
            else:
                x = self.block(f"{at}_down", x, e, x.shape[1], "down")
                if "embedding_type" in c:
                    kept = self.w.conv(f"{at}_aux_residual", aux, x.shape[1], 3, extra=1)
                    kept = self.resample(f"{at}_aux_residual", kept, "fused")
                    x = aux = (x + kept) / math.sqrt(2)
            skips.append(x)
            for i in range(c["num_blocks"]):
                x = self.block(f"{at}_block{i}", x, e, width, attends=attends(side))
                skips.append(x)
        x = self.block(f"dec.{sides[-1]}x{sides[-1]}_in0", x, e, widths[-1], attends=True)
        x = self.block(f"dec.{sides[-1]}x{sides[-1]}_in1", x, e, widths[-1])
        for level in reversed(range(len(sides))):
            at = f"dec.{sides[level]}x{sides[level]}"
            if level < len(sides) - 1:
                x = self.block(f"{at}_up", x, e, x.shape[1], "up")
            for i in range(c["num_blocks"] + 1):
                last = attends(sides[level]) and (not self.song or i == c["num_blocks"])
                x = torch.cat([x, skips.pop()], dim=1)
                x = self.block(f"{at}_block{i}", x, e, widths[level], attends=last)
        ends = ("_aux_norm", "_aux_conv") if self.song else ("out_norm", "out_conv")
        ends = [f"dec.{sides[0]}x{sides[0]}{end}" if self.song else end for end in ends]
        outputs = c["img_channels"] * (2 if c["precond"] == "iddpm" else 1)
        return self.w.conv(ends[1], F.silu(self.norm(ends[0], x)), outputs, 3)


class Within(Weights):
    """The weights of the network inside a preconditioned one."""

    def __init__(self, outer: Weights):
        self.outer = outer

    def __call__(self, name, *shape):
        return self.outer(f"model.{name}", *shape)


def denoise(config, weights, x, sigma, labels, augmentation):
    """EDM's four classes of preconditioning."""
    s, one = sigma[:, None, None, None], torch.ones(())
    if config["precond"] == "edm":
        total = s**2 + 0.25
        skip, out, scale, noise = 0.25 / total, s / 2 / total.sqrt(), 1 / total.sqrt(), s.log() / 4
    elif config["precond"] == "ve":
        skip, out, scale, noise = one, s, one, (s / 2).log()
    else:
        skip, out, scale = one, -s, 1 / (s**2 + 1).sqrt()
        noise = 999 * ((0.01 + 39.8 * (1 + s**2).log()).sqrt() - 0.1) / 19.9
    if config["precond"] == "iddpm":
        levels = weights("u", 1001)
        noise = 999.0 - (levels[None] - sigma[:, None]).abs().argmin(dim=1)
    network = EDM(config, Within(weights))
    inner = network(scale * x, noise.reshape(-1), labels, augmentation)
    return skip * x + out * inner[:, : config["img_channels"]]


# ---- flow_matching -----------------------------------------------------------------------------


class UNet:
    """flow_matching's UNetModel of a constructor's arguments."""

    def __init__(self, config: dict, weights: Weights):
        self.c, self.w = config, weights

    def norm(self, name, x):
        return self.w.norm(name, x, 32, 1e-5)

    def block(self, name, x, embedding, width, how=None):
        h = F.silu(self.norm(f"{name}.in_layers.0", x))
        if how == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        if how == "up":
            x, h = (F.interpolate(a, scale_factor=2) for a in (x, h))
        h = self.w.conv(f"{name}.in_layers.2", h, width, 3)
        twice = 2 if self.c["use_scale_shift_norm"] else 1
        e = self.w.linear(f"{name}.emb_layers.1", F.silu(embedding), twice * width)[..., None, None]
        if twice == 2:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + e)
        h = self.w.conv(f"{name}.out_layers.3", F.silu(h), width, 3)
        return h + (
            self.w.conv(f"{name}.skip_connection", x, width, 1) if x.shape[1] != width else x
        )

    def attention(self, name, x):
        b, c, *sides = x.shape
        line = lambda part, a, outputs: F.conv1d(
            a,
            self.w(f"{name}.{part}.weight", outputs, c, 1),
            self.w(f"{name}.{part}.bias", outputs),
        )
        wide = self.c["num_head_channels"]
        heads = self.c["num_heads"] if wide == -1 else c // wide
        qkv = line("qkv", self.norm(f"{name}.norm", x).reshape(b, c, -1), 3 * c)
        if self.c["use_new_attention_order"]:
            parts = [part.reshape(b * heads, c // heads, -1) for part in qkv.chunk(3, dim=1)]
        else:
            parts = qkv.reshape(b * heads, 3 * c // heads, -1).split(c // heads, dim=1)
        return x + line("proj_out", attend(*parts).reshape(b, c, -1), c).reshape(b, c, *sides)

    def resized(self, place, x, embedding, how):
        if self.c["resblock_updown"]:
            return self.block(place, x, embedding, x.shape[1], how)
        if how == "down":
            conv = lambda: self.w.conv(f"{place}.op", x, x.shape[1], 3, stride=2)
            return conv() if self.c["conv_resample"] else F.avg_pool2d(x, 2)
        x = F.interpolate(x, scale_factor=2)
        return self.w.conv(f"{place}.conv", x, x.shape[1], 3) if self.c["conv_resample"] else x

    def __call__(self, x, t, label):
        c, base = self.c, self.c["model_channels"]
        e = self.w.linear("time_embed.0", torch.cat(waves(t, base), dim=1), 4 * base)
        e = self.w.linear("time_embed.2", F.silu(e), 4 * base)
        if c["num_classes"]:
            e = e + self.w("label_emb.weight", c["num_classes"] + 1, 4 * base)[label]
        attends = lambda level: 2**level in c["attention_resolutions"]
        x = self.w.conv("input_blocks.0.0", x, base * c["channel_mult"][0], 3)
        skips = [x]
        for level, multiplier in enumerate(c["channel_mult"]):
            for _ in range(c["num_res_blocks"]):
                x = self.block(f"input_blocks.{len(skips)}.0", x, e, base * multiplier)
                x = self.attention(f"input_blocks.{len(skips)}.1", x) if attends(level) else x
                skips.append(x)
            if level < len(c["channel_mult"]) - 1:
                x = self.resized(f"input_blocks.{len(skips)}.0", x, e, "down")
                skips.append(x)
        x = self.block("middle_block.0", x, e, x.shape[1])
        x = self.block("middle_block.2", self.attention("middle_block.1", x), e, x.shape[1])
        total = len(skips)
        for level, multiplier in reversed(list(enumerate(c["channel_mult"]))):
            for i in range(c["num_res_blocks"] + 1):
                at = f"output_blocks.{total - len(skips)}"
                x = self.block(f"{at}.0", torch.cat([x, skips.pop()], 1), e, base * multiplier)
                x = self.attention(f"{at}.1", x) if attends(level) else x
                if level and i == c["num_res_blocks"]:
                    x = self.resized(f"{at}.{1 + attends(level)}", x, e, "up")
        return self.w.conv("out.2", F.silu(self.norm("out.0", x)), c["out_channels"], 3)


def computed(config: dict, call) -> tuple[dict, torch.Tensor]:
    """Names and shapes that a call asks for, and what it gives with weights of these."""
    noted = Weights()
    call(config, noted)
    shapes = {name: list(shape) for name, shape in noted.shapes.items()}
    return shapes, call(config, Weights(weights_of(shapes)))


def main() -> None:
    random, made = np.random.RandomState(1), {}
    for case, changes in EDM_CASES.items():
        config, side = EDM_PLAIN | changes, EDM_PLAIN["img_resolution"]
        sigma = np.array([0.05, 0.7, 20.0], np.float32)
        x = random.standard_normal((3, 3, side, side)).astype(np.float32)
        x *= np.sqrt(0.25 + sigma**2)[:, None, None, None]
        labels = np.array([0, config["label_dim"], max(config["label_dim"] - 1, 0)])
        hot = np.eye(config["label_dim"] + 1, dtype=np.float32)[labels][:, : config["label_dim"]]
        told = random.standard_normal((3, config["augment_dim"])).astype(np.float32)
        given = [torch.tensor(a) for a in (x, sigma, hot, told)]
        shapes, out = computed(config, lambda c, w, given=given: denoise(c, w, *given))
        facts = json.dumps({"config": config, "shapes": shapes})
        made |= {f"edm/{case}/{k}": a for k, a in dict(x=x, t=sigma, augmentation=told).items()}
        made |= {f"edm/{case}/label": labels, f"edm/{case}/out": out, f"edm/{case}/facts": facts}
    for case, changes in UNET_CASES.items():
        config = UNET_PLAIN | changes
        x, t = random.standard_normal((3, 3, 8, 8)).astype(np.float32), random.rand(3)
        label, t = np.array([0, 2, 3]), t.astype(np.float32)
        given = [torch.tensor(a) for a in (x, t, label)]
        shapes, out = computed(config, lambda c, w, given=given: UNet(c, w)(*given))
        facts = json.dumps({"config": config, "shapes": shapes})
        made |= {f"flow_matching/{case}/{k}": a for k, a in dict(x=x, t=t, label=label).items()}
        made |= {f"flow_matching/{case}/out": out, f"flow_matching/{case}/facts": facts}
    np.savez_compressed(OUT, **{name: np.asarray(value) for name, value in made.items()})


if __name__ == "__main__":
    with torch.no_grad():
        main()
