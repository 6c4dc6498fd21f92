"""What may differ when a run goes on, as far as the config says."""

import json

import pytest

from genfield.configuration import base
from genfield.errors import UserError
from genfield.program import checks, config_io


def test_what_is_recomputed_may_be_set_anew(tmp_path):
    config, net = base(), dict(name="transformer", width=16, depth=1, num_heads=2)
    config.net = net | {"remat": False}
    (tmp_path / "config.json").write_text(json.dumps(config_io.to_dict(config)))
    for changed in ({"remat": "full"}, {"remat": "dots"}, {"remat": True}, {}):
        config.net = net | changed
        checks.check_same_run(config, tmp_path)
    config.net.width = 32
    with pytest.raises(UserError, match=r"net\.width"):
        checks.check_same_run(config, tmp_path)


def test_what_is_said_is_what_was_left_out_by_default(tmp_path):
    """So a run of before a field was there goes on under a config that sets it as it was."""
    config, net = base(), dict(name="sit", depth=1, width=16, num_heads=2, patch_size=2)
    config.net = net
    (tmp_path / "config.json").write_text(json.dumps(config_io.to_dict(config)))
    config.net = net | {"attention": "xla"}
    checks.check_same_run(config, tmp_path)
    config.net.attention = "chunked"
    with pytest.raises(UserError, match=r"net\.attention"):
        checks.check_same_run(config, tmp_path)
