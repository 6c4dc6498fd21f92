"""What a file of weights is, in a form to print."""

from typing import Any, NamedTuple

from genfield.machine.fixed import without
from genfield.nets import count_parameters, known
from genfield.pretrained.family import Description, Guidance
from genfield.registry import AT_LEVELS

POINTS = {
    "gradient": "a gradient, which points away from the data: descend it",
    "velocity": "a velocity, from noise at t = 0 to data at t = 1",
    "score": "a score, which points to the data",
    "denoiser": "a denoiser, E[data | x]",
}
OUTPUTS = {
    "predicted": "with a distance",
    "potential": "of a scalar that comes with it",
    "energy": "of an energy that comes with it",
}


def points(d: Description) -> str:
    """What a field is and is called with, in words."""
    level = "the noise level" if d.teaches in AT_LEVELS else "t in [0, 1]"
    called = f"called with x and {level}" if d.clock else "called with x alone, no time"
    more = f", {OUTPUTS[d.output]}" if d.output in OUTPUTS else ""
    return f"{POINTS[d.teaches]}{more}; {called}"


class Info(NamedTuple):
    """What a file of weights is.

    Attributes:
      family: the record's name. title: the published name, or what it is in words.
      file: its path. sha256: of the file. part: of several in it, "ema" or "model".
      parameters: how many are trained. shape: of an example, channels last. num_classes: 0 without.
      null_label: the label that means none; None without classes.
      teaches: what the field is, of registry.FIELDS. points: the same in words.
      clock: whether the field is called with t, or the noise level.
      energy, preconditioning: as a config has them. guidance: as the authors guide.
      scale: what the data were multiplied by. facts: of the published constructor.
    """

    family: str
    title: str
    file: str
    sha256: str
    part: str | None
    parameters: int
    shape: tuple[int, ...]
    num_classes: int
    null_label: int | None
    teaches: str
    points: str
    clock: bool
    energy: str
    preconditioning: str
    guidance: Guidance | None
    scale: float | None
    facts: dict[str, Any]

    @classmethod
    def of(cls, family: str, d: Description, file: str, sha256: str, part, params) -> "Info":
        return cls(
            family=family,
            title=d.title,
            file=file,
            sha256=sha256,
            part=part,
            parameters=count_parameters(without(params, known()[d.net["name"]].fixed)),
            shape=d.shape,
            num_classes=d.num_classes,
            null_label=d.num_classes if d.num_classes and d.null else None,
            teaches=d.teaches,
            points=points(d),
            clock=d.clock,
            energy=d.energy,
            preconditioning=d.preconditioning,
            guidance=d.guidance,
            scale=d.scale,
            facts=dict(d.facts),
        )

    def __str__(self) -> str:
        side = "x".join(map(str, self.shape))
        lines = [f"{self.title}, {self.parameters:,} parameters, examples {side}"]
        lines.append(f"field     {self.points}")
        if self.energy != "none":
            lines.append(f"energy    {self.energy} of the network's output")
        if self.preconditioning != "none":
            lines.append(f"network   preconditioned: {self.preconditioning}")
        classes = f"{self.num_classes} classes" if self.num_classes else "no classes"
        null = "" if self.null_label is None else f", label {self.null_label} means none"
        lines.append(f"labels    {classes}{null}")
        if self.guidance is not None:
            channels = self.guidance.channels
            which = "all channels" if channels is None else f"the first {channels} channels"
            scale = "" if self.guidance.scale is None else f", scale {self.guidance.scale}"
            lines.append(f"guidance  the authors guide {which}{scale}")
        if self.scale is not None:
            lines.append(f"data      latents times {self.scale}")
        part = "" if self.part is None else f", its {self.part!r}"
        lines.append(f"file      {self.file}{part}, SHA-256 {self.sha256[:16]}…")
        return "\n".join(lines)
