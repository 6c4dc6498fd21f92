"""What pyproject.toml cannot say: the recipes and examples, at the top of a checkout, lie below
genfield/shipped in a wheel."""

from setuptools import find_packages, setup

SHIPPED = {f"genfield.shipped.{name}": name for name in ("configs", "examples")}

setup(packages=[*find_packages(include=["genfield*"]), *SHIPPED], package_dir=SHIPPED)
