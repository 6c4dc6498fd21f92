"""Weights & Biases. One W&B run a workdir: resuming goes on with it, by the id in wandb.json.

Steps are W&B's axis "step", not its own count: a resumed run writes some steps anew, and what W&B
has once it does not lose. WANDB_MODE=offline writes into the workdir's folder `wandb` alone.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from genfield import registry
from genfield.machine import logbook
from genfield.reading import json_file

FILE, PROJECT = "wandb.json", "genfield"
KEPT = {"id": str, "project": str, "written": dict}
WAIT = 60  # seconds that a start or an end waits for the network
WITHOUT_NETWORK = ("offline", "disabled", "dryrun")


class WandB:
    """A W&B run."""

    def __init__(self, workdir: Path, *, config: dict, step: int):
        import wandb

        self.wandb, self.path = wandb, workdir / FILE
        asked = config["train"].get("project")
        default = asked or os.environ.get("WANDB_PROJECT", PROJECT)
        first = {"id": secrets.token_hex(4), "project": default, "written": {}}
        self.known = self._read() or first
        if asked not in (None, self.known["project"]):
            raise ValueError(
                f"this run is in project {self.known['project']!r}: delete {self.path} to begin "
                f"one in {asked!r}"
            )
        self.run = wandb.init(
            project=self.known["project"],
            name=os.environ.get("WANDB_NAME", workdir.name),
            id=self.known["id"],
            resume="allow",
            dir=str(workdir),
            config=config,
            settings=wandb.Settings(console="off", init_timeout=WAIT, finish_timeout=WAIT),
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        logbook.write_json(self.path, self.known)

    def _read(self) -> dict | None:
        try:
            known = json_file(self.path)
            return {name: kind(known[name]) for name, kind in KEPT.items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OSError(
                f"{self.path} cannot be read ({error}): delete it to begin anew"
            ) from None

    def _once(self, what: str, step: int) -> bool:
        """Whether this is the first time that a step of something is written; it then counts."""
        if step <= self.known["written"].get(what, -1):
            return False
        self.known["written"][what] = step
        logbook.write_json(self.path, self.known)
        return True

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        named = {f"{split}/{name}": value for name, value in values.items()}
        if self._once(split, step):
            self.run.log({"step": step, **named})
        elif split != "train":  # evaluated again: the new figures stand
            self.run.summary.update(named)

    def images(self, step: int, name: str, path: Path) -> None:
        if self._once(f"picture {name}", step):
            self.run.log({"step": step, name: self.wandb.Image(str(path))})

    def close(self) -> None:
        self.run.finish()


def _against() -> str | None:
    """Without a key W&B would ask for one, and wait."""
    import wandb

    if wandb.setup().settings.mode in WITHOUT_NETWORK:
        return None
    try:
        known = wandb.login(prompt=False)
    except wandb.Error:  # a key that cannot be tried now: the start says so, and training goes on
        return None
    return None if known else "has no account here: run `wandb login`, or set WANDB_MODE=offline"


METHOD = registry.Logger(
    name="wandb",
    make=WandB,
    needs="wandb",
    install="genfield[wandb]",
    against=_against,
    automatic=False,
)
