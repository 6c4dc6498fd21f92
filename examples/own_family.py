"""A family of published weights of one's own: the MLP of TorchCFM's two-dimensional examples.

    python examples/own_family.py torchcfm_mlp.pt mlp.safetensors

opens what `torch.save(model.state_dict(), "torchcfm_mlp.pt")` wrote of
`torchcfm.models.MLP(dim=2, time_varying=True)`, says what it is, samples it, and writes it back.
In a file of `genfield/pretrained/families/` the same record is found by itself.
"""

import re
import sys

import jax

from genfield import pretrained, sampling
from genfield.errors import UserError
from genfield.pretrained.family import Description, Family
from genfield.pretrained.mapping import affine

NAME = re.compile(r"net\.(\d+)\.weight")


def recognises(shapes):
    return "net.0.weight" in shapes


def describe(shapes, facts, origin):
    """The sizes, from shapes alone: linear layers net.0, net.2, … with SELUs between them."""
    numbers = sorted(int(found[1]) for found in map(NAME.match, shapes) if found)
    (width, inputs), (outputs,) = shapes["net.0.weight"], shapes[f"net.{numbers[-1]}.bias"]
    if inputs not in (outputs, outputs + 1):
        raise UserError(f"{origin}: {inputs} inputs and {outputs} outputs are no field of (x, t)")
    clock = inputs > outputs
    net = {"name": "mlp", "width": width, "depth": len(numbers) - 1, "time_input": clock}
    return Description(
        title="TorchCFM's MLP",
        net=net,
        shape=(outputs,),
        num_classes=0,
        facts={"dim": outputs, "w": width, "time_varying": clock},
        teaches="velocity",
        clock=clock,
        loss={"name": "flow_matching", "time_input": clock},
        program={"sampler": {"name": "dopri5"}},
    )


def rules(description):
    """(published name, genfield's path, layout): from it follow both directions."""
    depth = description.net["depth"]
    names = ["first", *[f"hidden/{i}" for i in range(1, depth)], "last"]
    return [rule for i, name in enumerate(names) for rule in affine(f"net.{2 * i}", name)]


def writes(ours):
    """The description here of a network of genfield's; None where there is no place for it."""
    net = {"activation": "selu", "output": "vector", "width": 64, "depth": 3, **ours.net}
    alike = net["name"] == "mlp" and net["activation"] == "selu" and net["output"] == "vector"
    if not alike or ours.num_classes or ours.teaches != "velocity" or len(ours.shape) != 1:
        return None
    names = ("name", "width", "depth")
    net = {name: net[name] for name in names} | {"time_input": ours.clock}
    facts = {"dim": ours.shape[0], "w": net["width"], "time_varying": ours.clock}
    return ours._replace(title="TorchCFM's MLP", net=net, facts=facts)


METHOD = Family(
    name="torchcfm_mlp",
    title="TorchCFM's MLP",
    recognises=recognises,
    told=lambda facts: True,
    known=("dim", "w", "time_varying"),
    describe=describe,
    rules=rules,
    writes=writes,
)


if __name__ == "__main__":
    model = pretrained.load(sys.argv[1], kind=METHOD)
    print(model.info)
    x = jax.random.normal(jax.random.key(0), (1_000, *model.info.shape))
    out = sampling.sample(jax.random.key(1), model.field, x, sampling.heun(), num_steps=50)
    print(f"samples {out.x.shape}, mean {out.x.mean(0)}, standard deviation {out.x.std(0)}")
    print(pretrained.export(model, sys.argv[2], kind=METHOD))
