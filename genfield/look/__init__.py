"""A trained run in the browser, on this machine alone: python -m genfield.look --workdir=…

`folder` reads what lies in the workdir, `subject` computes by the run's own field, and `server`
gives both to one page (`page/`), which asks no other host for anything. See docs/look.md.
"""
