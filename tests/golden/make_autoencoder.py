"""Writes autoencoder.npz: tiny autoencoders of diffusers, and what they make of an image.

Run where diffusers and PyTorch are: python tests/golden/make_autoencoder.py
Written with diffusers 0.42.1 and PyTorch 2.13.0 on a CPU.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")
CASES = {
    # As Stable Diffusion has it: three levels, convolutions around the latents.
    "published": dict(
        block_out_channels=(2, 2, 4), layers_per_block=2, norm_num_groups=2, latent_channels=4
    ),
    # As the later, 16-channel kinds: none around the latents.
    "sixteen": dict(
        block_out_channels=(3, 6),
        layers_per_block=1,
        norm_num_groups=3,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
    ),
    "plain": dict(
        block_out_channels=(2, 4),
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=2,
        in_channels=1,
        out_channels=1,
        mid_block_add_attention=False,
    ),
}


def compvis(name: str, levels: int) -> str:
    """A parameter's name in the code of latent diffusion."""
    name = re.sub(r"^encoder\.down_blocks\.", "encoder.down.", name)
    up = lambda m: f"decoder.up.{levels - 1 - int(m[1])}."
    name = re.sub(r"^decoder\.up_blocks\.(\d+)\.", up, name)
    middle = lambda m: f".mid.block_{int(m[1]) + 1}."
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", middle, name)
    for ours, theirs in (
        (".mid_block.attentions.0.group_norm.", ".mid.attn_1.norm."),
        (".mid_block.attentions.0.to_q.", ".mid.attn_1.q."),
        (".mid_block.attentions.0.to_k.", ".mid.attn_1.k."),
        (".mid_block.attentions.0.to_v.", ".mid.attn_1.v."),
        (".mid_block.attentions.0.to_out.0.", ".mid.attn_1.proj_out."),
        (".resnets.", ".block."),
        (".conv_shortcut.", ".nin_shortcut."),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
        (".conv_norm_out.", ".norm_out."),
    ):
        name = name.replace(ours, theirs)
    return name


def main() -> None:
    torch.manual_seed(0)
    arrays, configs = {}, {}
    for case, sizes in CASES.items():
        levels = len(sizes["block_out_channels"])
        down, up = ([block] * levels for block in BLOCKS)
        config = sizes | {"down_block_types": down, "up_block_types": up, "act_fn": "silu"}
        model = AutoencoderKL(**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms begin as the identity: as trained ones
                parameter.add_(0.1 * torch.randn(parameter.shape))
            # A log-variance on each side of the clamp.
            last = model.quant_conv if model.quant_conv is not None else model.encoder.conv_out
            last.bias[-1], last.bias[-2] = 25.0, -40.0
            for parameter in model.parameters():  # so that half as many bytes hold them exactly
                parameter.copy_(parameter.half().float())
            x = torch.rand(2, sizes.get("in_channels", 3), 8, 12) * 2 - 1
            posterior = model.encode(x).latent_dist
            decoded = model.decode(posterior.mean).sample
        state = model.state_dict()
        names = [compvis(name, levels) for name in state]
        if case == "published":
            back = convert_ldm_vae_checkpoint(
                {n: a for n, a in zip(names, state.values(), strict=True)}, config
            )
            assert set(back) == set(state)
            assert all(torch.equal(back[n].reshape(a.shape), a) for n, a in state.items())
        shapes = [list(array.shape) for array in state.values()]
        configs[case] = sizes | {"names": list(state), "compvis": names, "shapes": shapes}
        flat = torch.cat([array.reshape(-1) for array in state.values()])
        arrays[f"{case}:parameters"] = flat.half().numpy()
        made = {"x": x, "mean": posterior.mean, "std": posterior.std, "decoded": decoded}
        arrays |= {f"{case}:{k}": np.moveaxis(v.numpy(), 1, -1) for k, v in made.items()}
        print(case, sum(a.numel() for a in state.values()), "parameters")
    path = Path(__file__).with_name("autoencoder.npz")
    np.savez_compressed(path, configs=np.array(json.dumps(configs)), **arrays)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
