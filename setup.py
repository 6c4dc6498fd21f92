"""What pyproject.toml cannot say: the recipes and examples, at the top of a checkout, lie below
genfield/shipped in a wheel; and PyPI, which has no files beside the README, needs whole links."""

import re
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SHIPPED = {f"genfield.shipped.{name}": name for name in ("configs", "examples")}


def readme() -> str:
    """README.md, whose links into the repository are addresses."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    home = project["urls"]["Homepage"]

    def whole(link) -> str:
        kind = "raw" if link[1].endswith((".gif", ".png", ".svg")) else "blob"
        return f"]({home}/{kind}/main/{link[1]})"

    text = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", whole, text)


setup(
    packages=[*find_packages(include=["genfield*"]), *SHIPPED],
    package_dir=SHIPPED,
    long_description=readme(),
    long_description_content_type="text/markdown",
)
