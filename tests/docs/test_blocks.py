"""Every code block is one of those that the other tests of this folder run, or says why not."""

import re

import pytest
from blocks import NAMES, PAGES, PYTHON, SHELL, STARTS, TEXT, blocks

MOST_SKIPPED = 12  # quotes of the source aside, which test_quotes compares


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_languages_are_known(page):
    for block in blocks(page):
        assert block.language in (*SHELL, *PYTHON, *TEXT), block.place


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_command_hides_in_a_block_of_text(page):
    for block in blocks(page):
        if block.language in TEXT and block.skip is None:
            assert not [line for line in block.text.splitlines() if STARTS.match(line)], block.place


def test_what_is_not_run_is_little_and_has_a_reason(capsys):
    skipped = [b for page in PAGES for b in blocks(page) if b.skip and b.skip[:9] != "quote of "]
    with capsys.disabled():
        for block in skipped:
            print(f"\nnot run: {block.place}: {block.skip}", end="")
    assert len(skipped) <= MOST_SKIPPED
    assert all(len(block.skip.split()) >= 3 for block in skipped)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_fence_is_found(page):
    """Also those within lists."""
    fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert len(blocks(page)) >= len(fences) // 2
