"""Names of configs that once meant something else keep their meaning in the runs that have them."""

import json

from ml_collections import ConfigDict

from genfield.program import config_io, defaults


def test_an_older_runs_squared_norm_keeps_its_sign(tmp_path):
    stored = config_io.to_dict(defaults.base()) | {"energy": "squared_norm"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(stored))
    assert config_io.from_file(path).energy == "squared_norm"
    del stored["autoencoder"]  # a field that came together with the new sign
    path.write_text(json.dumps(stored))
    config = config_io.from_file(path)
    assert isinstance(config, ConfigDict) and config.energy == "negative_squared_norm"
