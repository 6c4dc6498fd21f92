"""The tiny runs that studies are made of, each trained once for all of these files."""

import pytest
from programs import MOONS, ROOT, TINY_DIGITS, trained

FEW = {"train.steps": 2}
FLOWING = FEW | {
    "net": "{'name':'mlp','width':16,'depth':1,'time_input':True}",
    "loss": "{'name':'flow_matching'}",
    "sampler": "{'name':'heun','num_steps':4}",
}


def of(name, config, **asked):
    @pytest.fixture(scope="module", name=name)
    def fixture(tmp_path_factory):
        return trained(tmp_path_factory, config, **asked)

    return fixture


digits = of("digits", TINY_DIGITS, small=FEW)
digit_flow = of("digit_flow", TINY_DIGITS, small=FLOWING)
some = of("some", TINY_DIGITS, small=FEW, data__classes="(4,3,2,1,0)")
transformer = of("transformer", f"{TINY_DIGITS}:sit", small={})
moons = of("moons", MOONS, train__steps=2)
flow = of(
    "flow", ROOT / "configs" / "flow_matching_two_moons.py", train__steps=2, sampler__num_steps=4
)
edm = of("edm", ROOT / "configs" / "edm_two_moons.py", train__steps=2, net__width=8)
