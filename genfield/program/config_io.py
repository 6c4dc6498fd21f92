"""Reading configurations: a config file, the command line's overrides, the file in a workdir."""

import inspect
import json
import re
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from genfield import shipped
from genfield.errors import UserError
from genfield.program import own_files
from genfield.program.defaults import OPEN, base
from genfield.reading import json_file
from genfield.registry import Methods, choose


class Loaded(NamedTuple):
    """A configuration, and the methods that it can name; None: the package's alone."""

    config: ConfigDict
    methods: Methods | None


def load(name: str) -> ConfigDict:
    """What `get_config` of a config file returns; see `read`."""
    return read(name).config


def read(name: str) -> Loaded:
    """What `get_config` of a config file returns, and the methods declared there.

    An argument for it may follow a colon. The file may import files beside it. `name` is a path,
    the name of a shipped recipe, or the config.json of a run, which runs nothing but
    the copies of one's own files beside it.
    Raises:
      UserError: no such file, anything that it raises, or not a ConfigDict.
    """
    name, colon, argument = name.partition(":")
    path = place(name)
    if path.suffix == ".json":  # of a run: what it resolved to, and its copies of one's own files
        if colon:
            raise UserError(f"{path} is a resolved configuration: leave out :{argument}")
        return Loaded(from_file(path), own_files.methods_of(path.parent))
    module = {"__name__": path.stem, "__file__": str(path)}
    arguments = [argument] if colon else []
    with own_files.beside(path.parent) as modules:
        own_files.blame(path, lambda: exec(compile(path.read_bytes(), path, "exec"), module))
        if "get_config" not in module:
            raise UserError(f"{path} has no function get_config() that returns the configuration")
        try:
            inspect.signature(module["get_config"]).bind(*arguments)
        except TypeError as error:
            wanted = "takes no argument" if colon else "needs an argument"
            raise UserError(f"{path} {wanted} after a colon: {error}") from error
        config = own_files.blame(path, lambda: module["get_config"](*arguments))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returns {type(config).__name__}, not a ConfigDict: "
            "start it from genfield.configuration.base()"
        )
    _complete(config)
    return Loaded(config, own_files.methods_in(path, module, modules))


def place(name: str) -> Path:
    """The config file that a path or a name of a recipe means; a file at the path comes first.

    Raises:
      UserError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if found := shipped.find(name):
        return found
    if path.is_dir() or not shipped.is_name(name):
        folder = path if path.is_dir() else path.parent
        choose(f"config file in {folder}", path.name, shipped.config_files(folder))
    near = ", ".join(shipped.near(name))
    hint = f"did you mean {near}?" if near else "no name is like it."
    raise UserError(
        f"unknown config {name!r}, neither a file here nor a recipe: {hint} "
        "genfield configs lists the recipes"
    )


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """`config` with --config.section.field=value of a command line applied, the last of each.

    Sections nested in the open ones are made as they are named: --config.loss.weight.name=…

    Raises:
      UserError: unknown sections, values of the wrong type.
    """
    arguments = _last_of_each(arguments)
    for argument in arguments:
        names = argument.split("=")[0].split(".")[1:-1]
        section = config
        for depth, name in enumerate(names):
            if name not in section:
                if names[0] not in OPEN or depth == 0:
                    choose(f"section in {argument}:", name, section)
                section[name] = ConfigDict()
            section = section[name]
            if not isinstance(section, ConfigDict):
                raise UserError(f"{argument}: {name} is {section!r}, not a section")
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict(
            "config",
            config,
            lock_config=False,
            flag_values=values,
            accept_new_attributes=True,
            sys_argv=argv,
        )
        rest = values(argv)
    except (flags.Error, ValueError, TypeError, AttributeError) as error:
        raise UserError(problem(str(error))) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    return config


def _last_of_each(arguments: list[str]) -> list[str]:
    """The arguments without those that a later one of the same field replaces.

    ml_collections would join tuples that are given twice, where of numbers the last one counts.
    """
    given: list[list[str]] = []  # an override, and what follows it where it has no "="
    for argument in arguments:
        if argument.startswith("-") or not given or "=" in given[-1][0]:
            given.append([argument])
        else:
            given[-1].append(argument)
    field = lambda words: re.sub(r"^--?(?:no(?=config))?", "", words[0].split("=")[0])
    last = {field(words): place for place, words in enumerate(given)}
    return [word for i, words in enumerate(given) if last[field(words)] == i for word in words]


def problem(text: str) -> str:
    """What absl and ml_collections say of a flag's value, in the words of `errors.TYPES`."""
    text = text.splitlines()[0]
    flag, _, reason = text.removeprefix("flag ").partition(": ")
    for sign, mend in (
        ("for int()", "must be a whole number"),
        ("to float", "must be a number"),
        ("Non-boolean", "must be True or False"),
        ("as a ConfigDict", "is a section: set its fields, as --config.net.name=mlp"),
    ):
        if sign in reason:
            return f"{flag} {mend}"
    return text


def to_dict(config: ConfigDict) -> dict:
    """Plain JSON types: what `config.json` holds."""
    try:
        return json.loads(json.dumps(config.to_dict()))
    except TypeError as error:
        raise UserError(f"a config holds numbers, strings, tuples and sections: {error}") from error


def from_file(path: Path) -> ConfigDict:
    """The configuration that a run left in its workdir."""

    def restored(value):  # JSON has lists where a config has tuples
        if isinstance(value, list):
            return tuple(map(restored, value))
        return {k: restored(v) for k, v in value.items()} if isinstance(value, dict) else value

    try:
        stored = json_file(path)
        if not isinstance(stored, dict):
            raise ValueError(f"a {type(stored).__name__}, not a section")
        _keep_meaning(stored)
        config = ConfigDict(restored(stored))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a configuration ({error}): put back a whole one, or delete "
            "it and pass --config"
        ) from error
    _fill(config, base())  # a run of an older version lacks what is new
    return config


def _keep_meaning(stored: dict) -> None:
    """Names of an older version that mean something else now get the name of what they meant."""
    if "autoencoder" not in stored and stored.get("energy") == "squared_norm":
        stored["energy"] = "negative_squared_norm"  # the sign was turned when that field came


def _complete(config: ConfigDict) -> None:
    """Gives sections that a file sets as a whole the defaults of the fields that it leaves out."""
    for name, default in base().items():
        section = config.get(name)
        if name in OPEN or not (
            isinstance(default, ConfigDict) and isinstance(section, ConfigDict)
        ):
            continue
        for field in default:
            if field not in section:
                section[field] = default.get_ref(field)


def _fill(config: ConfigDict, default: ConfigDict) -> None:
    """Adds what is missing or None, with its types, but no sections that may be empty."""
    for field, value in default.items():
        if isinstance(value, ConfigDict):
            if field not in OPEN and field not in config:
                config[field] = value
            elif field not in OPEN and isinstance(config.get(field), ConfigDict):
                _fill(config[field], value)
        elif config.get(field) is None:
            config[field] = default.get_ref(field)
