"""The table of mutants keeps up with the package: each one's text stands in it once."""

from mutants import MUTANTS, ROOT, files_of


def test_every_mutant_has_its_place_and_its_tests():
    package = "".join(path.read_text() for path in sorted(ROOT.glob("genfield/**/*.py")))
    assert [m.name for m in MUTANTS if package.count(m.old) != 1] == []
    assert all(files_of(m) for m in MUTANTS)
