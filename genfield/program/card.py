"""The repro card: everything that a figure depends on, as card.json and as a readable table.

`python -m genfield.compare A/card.json B/card.json` lists what differs between two.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genfield import registry
from genfield.machine import checkpoint, fixed, logbook, sums
from genfield.machine.tables import columns
from genfield.metrics.images import Judge
from genfield.metrics.reference import Reference
from genfield.nets import count_parameters
from genfield.program import config_io, generate, sampler, weights
from genfield.program.evaluate import Evaluation
from genfield.program.experiment import Experiment
from genfield.reading import json_file
from genfield.registry import Methods

FILE = "card.json"


def digest(values: Any) -> str:
    """Sixteen hex digits of JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def parameters_digest(params) -> str:
    """Of a tree of arrays: equal for equal values, on any mesh."""
    return digest(checkpoint.digests(params))


def of_origin(exp: Experiment, step: int, params) -> dict:
    """Where parameters come from: the section "training", or "weights" of a file."""
    if exp.weights is None:
        return {"training": of_training(exp, step, params)}
    digest = {"parameters_digest": parameters_digest(params)}
    return {"weights": weights.facts(exp.weights) | digest}


def of_training(exp: Experiment, step: int, params) -> dict:
    """What was learned, from what; `params` are those that the samples come from."""
    config = exp.config
    return {
        "loss": config.loss.name,
        "data": config.data.name,
        "data_fingerprint": exp.data.fingerprint,
        "global_batch": config.batch_size,
        "steps": step,
        "examples": step * config.batch_size,
        "ema_rate": exp.ema_rate,
        "seed": config.seed,
        "parameter_count": count_parameters(fixed.without(exp.abstract.params, exp.fixed)),
        "parameters_digest": parameters_digest(params),
    }


def of_sampling(exp: Experiment, out: Evaluation) -> dict:
    """How the samples were drawn."""
    config = exp.config
    return {
        "parameters": generate.which(exp),
        "sampler": resolved_sampler(config_io.to_dict(config.sampler), exp.methods),
        "nfe": out.results.get("nfe"),
        "guidance_scale": config.sample.guidance_scale,
        "guidance_on": sampler.guided_product(config, exp.methods),
        "num_samples": config.evaluate.num_samples if out.by_seed else 0,
        "seeds": out.seeds,
        "rounding": config.sample.rounding if exp.pictures else None,
    } | _of_pixels_and_labels(exp)


def _of_pixels_and_labels(exp: Experiment) -> dict:
    """How labels were chosen, where there are any, and what decoded, where something did."""
    out = {"labels": exp.config.evaluate.labels} if exp.data.num_classes else {}
    if exp.decoder is not None:
        out["autoencoder"] = {"source": exp.decoder.weights.source, **exp.decoder.facts}
    return out


def resolved_sampler(section: dict, methods: Methods) -> dict:
    """A sampler section with the defaults that it leaves out."""
    method = methods[registry.Sampler][section["name"]]
    known = registry.bound(method, section)
    out = {name: value for name, value in known.items() if value is not None} | section
    return out | ({"then": resolved_sampler(out["then"], methods)} if out.get("then") else {})


def of_features(judge: Judge) -> dict:
    """The feature network and what it was shown."""
    network = judge.network
    return {
        "network": network.name,
        "hash": network.hash,
        "origin": network.origin,
        "trained": network.trained,
        "verified": network.verified,
        "size": network.size,
        "resize": judge.resize,
    }


def of_metrics(out: Evaluation) -> dict:
    """Each figure with its spread and what each sampling seed gave."""
    metrics = {}
    for name, value in out.results.items():
        by_seed = [row[name] for row in out.by_seed if name in row]
        metrics[name] = {"value": value, "by_seed": by_seed}
        if name in out.spread:
            metrics[name]["sd"] = out.spread[name]
    return metrics


def make(
    out: Evaluation, judge: Judge | None, reference: Reference | None, config: dict, **sections
) -> dict:
    """A card.

    Args:
      out: the figures. judge, reference: of image metrics, else None.
      config: the resolved configuration, as JSON types.
      sections: what the figures are of: "training" or "weights" and "sampling", or "samples".
    """
    card = {"metrics": of_metrics(out), **sections}
    if judge is not None:
        card |= {"features": of_features(judge), "reference": reference.manifest}
    device = jax.devices()[0]
    return card | {
        "versions": logbook.versions(),
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "config": config,
    }


def write(workdir: Path, card: dict) -> Path:
    """card.json and card.md, by process 0; another card that was there is kept beside them."""
    path = workdir / FILE
    if jax.process_index() != 0:
        return path
    workdir.mkdir(parents=True, exist_ok=True)
    card = json.loads(json.dumps(card, default=_plain))
    if path.exists() and (older := _read(path)) != card:
        changed = older is None or FILE in sums.changed(workdir)
        why = "is damaged, or was changed" if changed else "is of another evaluation"
        logbook.keep_older(path, why)
    logbook.write_json(path, card)
    logbook.replace_text(workdir / "card.md", readable(card))
    return path


def headline(card: dict) -> str:
    """One line on what made a card's image figures; empty where there are none."""
    if "features" not in card:
        return ""
    made, reference = card["features"], card["reference"]
    rounding = card.get("sampling", {}).get("rounding")
    count = card["sampling"]["num_samples"] if rounding else card["samples"]["count"]
    sampling = card.get("sampling", {})
    decoded, labels = sampling.get("autoencoder"), sampling.get("labels")
    parts = [
        f"{made['network']} {made['hash'][:12]}" + _doubts(made),
        f"resize {made['resize']}",
        *([f"decoded by {decoded['source']} {decoded['hash'][:12]}"] if decoded else []),
        *([f"rounding {rounding}"] if rounding else []),
        f"{count:,} samples against {reference['source']} "
        f"({reference.get('identity') or reference['file_hash']})",
        *([f"{labels} labels"] if labels else []),
    ]
    return ", ".join(parts)


def _doubts(made: dict) -> str:
    if not made["trained"]:
        return " (random)"
    return "" if made["verified"] else " (not the published file: check its origin)"


def _plain(value):
    return value.item() if isinstance(value, np.generic) else str(value)


def _read(path: Path):
    try:
        return json_file(path)
    except ValueError:
        return None


def readable(card: dict) -> str:
    """The card as text: the figures first; the config is left to card.json."""
    rows = [("metric", "value", "sd over sampling seeds")]
    for name, figure in card["metrics"].items():
        spread = f"{figure['sd']:.2g}" if "sd" in figure else "-"
        rows.append((name, f"{figure['value']:.6g}", spread))
    parts = [columns(rows)]
    for section, values in card.items():
        if section not in ("metrics", "config"):
            parts.append(columns([(section, ""), *_leaves(values)]))
    return "```\n" + "\n\n".join(parts) + "\n```\n"


def _leaves(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for key, value in values.items():
        if isinstance(value, dict):
            out += _leaves(value, f"{prefix}{key}.")
        else:
            out.append((prefix + key, str(value)))
    return out
