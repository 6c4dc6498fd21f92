"""Where the files lie that come with the package: recipes, examples, small trained models.

In a wheel they lie below this folder, where `setup.py` puts them; in a checkout at its top.
"""

import difflib
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


def _folder(name: str) -> Path:
    inside = HERE / name
    return inside if inside.is_dir() else HERE.parents[1] / name


CONFIGS, EXAMPLES = _folder("configs"), _folder("examples")
MODELS = HERE.parent / "pretrained" / "models"
FOLDERS = {"configs": CONFIGS, "examples": EXAMPLES}
ENDING = ".py"


class Recipe(NamedTuple):
    """What a page says of a variant beside its config: RECIPES = {variant: Recipe(…)}.

    The first is the default; "" is the only one of a page without any.

    Attributes:
      parameters: of its field's network; None where they hang on the data.
      time: of training on two CPU cores, as "about 2 min" or "minutes"; else what it is for, "a
        GPU" or "GPUs".
    """

    parameters: int | None
    time: str


def config_files(folder: Path) -> list[str]:
    """Names of the config files in a folder; the files that they import are none."""
    files = [file for file in folder.glob(f"*{ENDING}") if file.is_file()]
    return sorted(file.name for file in files if b"def get_config" in file.read_bytes())


def recipes() -> list[str]:
    """Names of the shipped recipes, as `--config` takes them."""
    return [name.removesuffix(ENDING) for name in config_files(CONFIGS)]


def is_name(name: str) -> bool:
    """Whether this may mean a shipped file: a bare name, or one in configs/ or examples/."""
    return Path(name).parent.as_posix() in (".", *FOLDERS)


def find(name: str) -> Path | None:
    """The shipped config file that a name means, its ending left out or not; None without one.

    "edm_cifar10", "edm_cifar10.py" and "configs/edm_cifar10.py" are one, "examples/own_loss" is
    another.
    """
    path = Path(name)
    folder = FOLDERS.get(path.parent.name or "configs", CONFIGS)
    file = folder / f"{path.name.removesuffix(ENDING)}{ENDING}"
    return file if is_name(name) and file.name in config_files(folder) else None


def near(name: str, most: int = 4) -> list[str]:
    """Recipes, examples, and config files of the current folder, whose names are like this one."""
    stem = Path(name).name.removesuffix(ENDING)
    examples = config_files(EXAMPLES)
    known = {file.removesuffix(ENDING): f"{EXAMPLES.name}/{file}" for file in examples}
    known |= {recipe: recipe for recipe in recipes()}
    known |= {file.removesuffix(ENDING): file for file in config_files(Path())}
    close = difflib.get_close_matches(stem, known, n=most)
    within = [other for other in known if stem and stem in other and other not in close]
    return [known[other] for other in [*close, *within][:most]]
