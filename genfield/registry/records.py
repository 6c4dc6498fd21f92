"""The records: what the program must know of a method, each field required."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from genfield.errors import UserError

FIELDS = ("gradient", "velocity", "score", "denoiser")  # what a field can be
AT_LEVELS = ("score", "denoiser")  # of these: fields of the noise level, on a path that has one
PRODUCTS = ("direction", "displacement")
OUTPUTS = ("vector", "predicted", "potential", "energy")
HOLDINGS = ("points", "sequences", "images", "latents", "pairs")
READINGS = ("samples", "features", "run")


class Nested(NamedTuple):
    """A section nested in a method's own.

    Attributes:
      table: name -> a function of the section's other fields.
      default: the name that is taken where a config leaves the section out; None: the method's own.
      of_data: whether it is built for the data: the functions take `shape` and `num_classes` too.
      bare: whether a name alone will do for the section.
      loads: whether what it makes reads files when it is first used.
    """

    table: Mapping[str, Callable]
    default: str | None
    of_data: bool
    bare: bool
    loads: bool


class Roles(NamedTuple):
    """What a loss trains beside its field.

    Attributes:
      init: (key, **bound arguments) -> {role: parameters}.
      optimizers: role -> (the config's section `optimizer`) -> an optax transformation.
    """

    init: Callable[..., dict]
    optimizers: Mapping[str, Callable]


class Extras(NamedTuple):
    """What a loss can be given beside field, sample and condition; it names what it takes.

    Attributes:
      key: [B], one an example. roles: {role: parameters}, of `Roles`.
      label: [B] of the examples, before label dropout. null_class: the label that means none.
      sigma_data: the config's, standard deviation of the data.
      step: [B] int32, the training step. real, real_label: [B, …], examples of the data beside
        pairs, and their labels.
      last_layer: (weights of the network's last layer, weights -> the field that has them).
    """

    key: Any
    roles: Any
    label: Any
    null_class: Any
    sigma_data: Any
    step: Any
    real: Any
    real_label: Any
    last_layer: Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What all methods have: the name under which a config asks for them."""

    name: str

    @property
    def target(self) -> Callable:
        """The function whose arguments are the fields of a config's section."""
        return getattr(self, "make" if hasattr(self, "make") else "function")

    @property
    def supplied(self) -> tuple[str, ...]:
        """Arguments that the program passes: a config may not set them."""
        return ()

    def _check(self, field: str, known: Iterable[str]) -> None:
        value = getattr(self, field)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in known:
                raise UserError(
                    f"{type(self).__name__} {self.name!r}: {field}={one!r} is none of "
                    f"{', '.join(known)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Loss(Record):
    """A loss: (field, sample, cond, *, extras, **fields) -> (loss [B], terms {name: [B]}).

    Attributes:
      teaches: what its field learns to be, of FIELDS; times and signs are converted from there.
      outputs: of OUTPUTS, what it takes: a "vector", "predicted" (a direction and a distance), a
        "potential" (a scalar and its gradient), an "energy" made of a vector network.
      scalar: what a Prediction's `distance` says: "distance", "energy", "action"; None without.
      clock: bound arguments -> whether its field is called with t, or the noise level.
      couples: bound arguments -> whether the examples of a group hang on each other.
      shares_time: whether the examples of a group share one t.
      second_order: whether it differentiates its field with respect to anything but parameters.
      time_law: the one law of times that it is right for; None: any.
      extras: of `Extras`. roles: see `Roles`; None without. tables: its nested sections, by field.
    """

    function: Callable
    teaches: str
    outputs: tuple[str, ...]
    scalar: str | None
    clock: Callable[[Mapping], bool]
    couples: Callable[[Mapping], bool]
    shares_time: bool
    second_order: bool
    time_law: str | None
    extras: tuple[str, ...]
    roles: Roles | None
    tables: Mapping[str, Nested]

    def __post_init__(self):
        self._check("teaches", FIELDS)
        self._check("outputs", OUTPUTS)
        self._check("extras", Extras._fields)

    @property
    def at_levels(self) -> bool:
        """Whether its field is one of noise levels."""
        return self.teaches in AT_LEVELS

    @property
    def supplied(self) -> tuple[str, ...]:
        return ("field", "sample", "cond", *self.extras)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampler(Record):
    """A sampler: make(**fields) -> sampling.Sampler; adaptive: make(field, x, *, cond, trace, …).

    Attributes:
      follows: of FIELDS; fields that learned another are converted where that can be.
      clock: whether it tells its field t, or the noise level.
      noisy: bound arguments -> whether it draws noise of its own.
      needs_output: of OUTPUTS, beyond a vector; None: any.
      product: of a Prediction it follows "direction" (v) or "displacement" (u v), which guidance
        and sums of fields act on.
      step_scales_field: whether a field times a factor has a step times that factor.
      levels: (bound arguments, num_steps) -> the noise levels where it stands, from the start on;
        None where it has none.
      steps: bound arguments -> its number of steps; None: the config's num_steps.
      adaptive: whether it chooses its own steps.
      pieces: of an adaptive one, (**fields, trace) -> `sampling.core.Pieces`; None: each batch is
        one call, within which no progress shows.
      times: of one with a clock, (bound arguments, num_steps) -> the times where it stands, from
        the start on; None: even ones from 0 to 1.
      scored: whether it makes a score of its velocity, which is right only of one that was trained
        with t, on the straight path from normal noise that hangs on nothing.
    """

    make: Callable
    follows: str
    clock: bool
    noisy: Callable[[Mapping], bool]
    needs_output: tuple[str, ...] | None
    product: str
    step_scales_field: bool
    levels: Callable | None
    steps: Callable[[Mapping], int] | None
    adaptive: bool
    pieces: Callable | None = None
    times: Callable | None = None  # as the next, not required: younger than files of one's own
    scored: bool = False

    def __post_init__(self):
        self._check("follows", FIELDS)
        self._check("product", PRODUCTS)
        if self.needs_output is not None:
            self._check("needs_output", OUTPUTS)

    @property
    def supplied(self) -> tuple[str, ...]:
        return ("field", "x", "cond", "trace") if self.adaptive else ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StopRule(Record):
    """When a sample is finished: make(**fields) -> stopping.Rule.

    needs_output: as a sampler's. scales: whether its threshold is in units of the field.
    """

    make: Callable
    needs_output: tuple[str, ...] | None
    scales: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Coupling(Record):
    """(x0, x1, *, extras, **fields) -> x0 reordered.

    extras: of "key", "label". groups: whether it matches within groups, and takes group_size.
    """

    function: Callable
    extras: tuple[str, ...]
    groups: bool

    def __post_init__(self):
        self._check("extras", ("key", "label"))

    @property
    def supplied(self) -> tuple[str, ...]:
        return ("x0", "x1", "group_size", "key", "label")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rematching(Record):
    """(path, sample, **fields) -> sample, its targets replaced; moves: whether it does replace."""

    function: Callable
    moves: bool

    @property
    def supplied(self) -> tuple[str, ...]:
        return ("path", "sample")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Path(Record):
    """A path from source to data: paths.Path; noise_levels: whether its t is the noise level."""

    path: Any
    noise_levels: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TimeLaw(Record):
    """make(**fields) -> ((key, n) -> times [n]).

    noise_levels: whether these are noise levels. one: bound arguments -> the only one; None: many.
    """

    make: Callable
    noise_levels: bool
    one: Callable[[Mapping], float] | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network(Record):
    """A network: an nnx.Module class, a pair of functions, or a function of fields that gives one.

    Attributes:
      make: a class, whose constructor takes its fields and shape, num_classes, rngs; or a pair
        init(key, shape, num_classes) -> params and apply(params, x, t, cond, *, key, train); or
        make(**fields) -> such a pair.
      second_order: bound arguments -> what in it cannot be differentiated twice, in words; None:
        nothing.
      last_layer: path of the last layer's weights among its parameters; None: not told.
      stack: names of subtrees whose arrays have a layer axis first, which is never split.
      blocks: names of subtrees that gather their own weights on a mesh as they run, by
        `placement.gathered`. Those of the rest are gathered before the network runs.
      augmented: whether it can be told how images were augmented (field augmentation_size).
      fixed: of arrays among the parameters that training leaves as they are, by their paths:
        shape -> the values they start with. Checkpoints may lack them, and then have these.
    """

    make: Any
    second_order: Callable[[Mapping], str | None]
    last_layer: tuple[str, ...] | None
    stack: tuple[str, ...]
    augmented: bool
    blocks: tuple[str, ...] = ()
    fixed: Mapping[tuple[str, ...], Callable] = dataclasses.field(default_factory=dict)

    @property
    def target(self) -> Callable:
        """The function of the fields; of a class its constructor, of a pair one that gives it."""
        if isinstance(self.make, tuple):
            return lambda: self.make
        if not inspect.isclass(self.make):
            return self.make
        arguments = list(inspect.signature(self.make.__init__).parameters.values())[1:]

        def construct(**fields):
            return self.make(**fields)

        construct.__signature__ = inspect.Signature(arguments)
        return construct

    @property
    def supplied(self) -> tuple[str, ...]:
        return ("shape", "num_classes", "rngs") if inspect.isclass(self.make) else ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DataSource(Record):
    """A source of data: make(**fields) -> an object with shape, len and gather(rows).

    Attributes:
      make: or, for those of the package, make(*, feed, **fields) -> data.pipeline.Dataset.
      holds: of HOLDINGS. drawn: whether the device draws them anew at each step.
      beside_pairs: whether it can be the real data beside pairs.
      fed: whether `make` takes `feed` and gives a Dataset.
    """

    make: Callable
    holds: str
    drawn: bool
    beside_pairs: bool
    fed: bool

    def __post_init__(self):
        self._check("holds", HOLDINGS)

    @property
    def supplied(self) -> tuple[str, ...]:
        return ("feed",) if self.fed else ()


class Facts(NamedTuple):
    """What a metric asks of a run.

    Attributes:
      data: the name of its data. shape: of an example. pixels: whether they are images, uint8.
      splits: that there are examples of. likelihood: whether its field has one.
      latents: whether the examples are latents. pictures: whether samples are images, or are
        decoded where images are wanted.
    """

    data: str
    shape: tuple[int, ...]
    pixels: bool
    splits: tuple[str, ...]
    likelihood: bool
    latents: bool
    pictures: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Metric(Record):
    """A metric of samples.

    Attributes:
      reads: "samples": compute(samples [N, *D], target [M, *D], section) -> {figure: value};
        "features": of a feature network, compute(generated, reference) -> {figure: value} with
        metrics.images.Statistics; "run": of a run itself, compute(evaluator, params, known) with
        program.evaluate.Evaluator.
      against: facts -> what stands against measuring such a run, in words that go on "metric
        'name' …"; None: nothing.
      gaussians, features: outputs of the network that it reads, as moments or whole.
      of_reference: whether it reads the reference too.
      least: how few samples it takes.
      smaller, larger: figures of which less, or more, is better; of others neither is.
      compute: see reads.
    """

    reads: str
    against: Callable[[Facts], str | None]
    gaussians: tuple[str, ...]
    features: tuple[str, ...]
    of_reference: bool
    least: int
    smaller: tuple[str, ...]
    compute: Callable
    larger: tuple[str, ...] = ()  # not required: files of one's own were written before it was

    def __post_init__(self):
        self._check("reads", READINGS)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Logger(Record):
    """Where figures go beside metrics.jsonl: make(workdir, *, config, step) -> an object with

    write(step, split, values {name: number}), images(step, name, path of a PNG), close(). `config`
    is the run's, as JSON types; `step` is where it begins or goes on: what was written beyond it is
    written anew. Only process 0 opens one, and what it raises is a warning.

    Attributes:
      needs: the module that it imports; None: nothing. install: what pip installs for it.
      against: () -> what stands against starting it now, in words that go on "'name' …", told
        before training; None: nothing.
      automatic: whether "auto" in `train.loggers` means it where it is installed.
    """

    make: Callable
    needs: str | None
    install: str
    against: Callable[[], str | None]
    automatic: bool
