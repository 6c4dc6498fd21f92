"""Studies of a trained run: python -m genfield.study NAME --workdir=…; one file a study."""
