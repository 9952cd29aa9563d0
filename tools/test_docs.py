# SPDX-License-Identifier: Apache-2.0
"""The pages that are made from the code: fresh, complete, and without dead links."""

import re
from types import SimpleNamespace

import pytest

from tools import docs, support
from torpor.engine.kinds import FILE_KINDS

PAGES = sorted(
    [*docs.ROOT.glob("*.md"), *docs.ROOT.glob("docs/**/*.md"), docs.ROOT / "native/README.md"]
)


@pytest.mark.parametrize("page", [docs.LIMITS_PAGE, docs.MATRIX_PAGE], ids=lambda page: page.name)
def test_pages_are_fresh(page):
    assert page.read_text() == docs.fresh(page), "run `make docs`"


def test_a_stale_page_is_noticed(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "limits.md"
    stale.write_text("by hand\n<!-- generated: memory -->\nold\n<!-- end -->\nby hand too\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "LIMITS_PAGE", stale)
    monkeypatch.setattr(docs, "MATRIX_PAGE", stale)
    monkeypatch.setattr(docs.sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 1
    assert "limits.md: not fresh" in capsys.readouterr().out
    assert "old" in stale.read_text()
    monkeypatch.setattr(docs.sys, "argv", ["docs.py"])
    assert docs.main() == 0
    written = stale.read_text()
    assert written.startswith("by hand\n")
    assert written.endswith("by hand too\n")
    assert "`shadow-stack`" in written
    assert "\nold\n" not in written


def test_every_case_of_every_kind_is_told():
    page = docs.LIMITS_PAGE.read_text()
    missing = [
        (kind.name, limit.case)
        for kind in FILE_KINDS
        for limit in kind.limits
        if f"| `{limit.case}` | {docs.cell(limit.what)} | {docs.cell(limit.remedy)} |" not in page
    ]
    assert not missing


def test_refusals_are_found_in_the_source():
    rows = docs.raised(("engine/restore/tree.py",))
    whats = [what for _, what, _ in rows]
    assert "its process group belongs to another session" in whats
    assert "session … was made by a task that is not an ancestor" in whats
    assert [remedy for _, _, remedy in rows if "setsid" in remedy]  # a constant of the module


def test_tables_stay_tables():
    assert docs.cell("a | b\n  c") == "a \\| b c"


def test_tests_that_are_named_exist():
    named = [
        path for has in (*support.KINDS.values(), *support.STATE.values()) for path in has.tests
    ]
    assert not [path for path in named if not (docs.ROOT / path).is_file()]
    assert all(has.tests for name, has in support.KINDS.items() if name != "terminal")


def test_an_unknown_block_is_an_error():
    page = SimpleNamespace(read_text=lambda: "<!-- generated: nonsense -->\n<!-- end -->")
    with pytest.raises(ValueError, match="nonsense"):
        docs.fresh(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(docs.ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.partition("#") for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    dead = []
    for path, _, anchor in targets:
        if path.startswith(("http:", "https:", "mailto:")):
            continue
        place = (page.parent / path) if path else page
        if not place.exists() or (anchor and anchor not in anchors(place.read_text())):
            dead.append(f"{path}#{anchor}")
    assert not dead


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
