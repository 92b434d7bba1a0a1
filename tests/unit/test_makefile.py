"""Every target that the Makefile names does something."""

from __future__ import annotations

import re

import pytest

from tests.e2e.process import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
(NAMED,) = re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("target", NAMED.split())
def test_a_target_has_one_rule(target: str) -> None:
    # make takes a .PHONY without a rule for done.
    rules = re.findall(rf"^{re.escape(target)}:(.*)$", MAKEFILE, re.MULTILINE)
    assert len(rules) == 1
