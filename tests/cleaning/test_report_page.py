"""The page of ``sdr clean`` in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sdr_lightning.cleaning import Cleaned
from sdr_lightning.cleaning.page import curve, rows_near_threshold
from tests.browser import Page, browsing
from tests.cleaning.own import SCRIPT

pytestmark = pytest.mark.slow

SLIDER = "document.getElementById('threshold')"
REMOVED = "[...document.querySelectorAll('.verdict')].filter(e => e.textContent === 'removed').length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browsing() as page:
        yield page


@pytest.fixture
def page(browser: Page, cleaned: tuple[Cleaned, Path]) -> Iterator[Page]:
    """The page; afterwards no script has failed, and nothing from outside was asked for."""
    browser.requests.clear()
    browser.open(f"file://{cleaned[1]}/report.html")
    yield browser
    assert not browser.errors
    assert not browser.dialogs
    assert all(address.startswith(("file:", "data:")) for address in browser.requests)


def shown(page: Page) -> list[str]:
    names = ("value", "gone", "precision", "left")
    return [page.evaluate(f"document.getElementById('{name}').textContent") for name in names]


def expected(found: Cleaned, step: int) -> list[str]:
    counted = curve(found)
    gone, wrong = int(counted["pairs"][step]), counted["wrong"][step]
    precision = f"{100 * wrong / gone:.1f} %" if gone else "none removed"
    share = f"{gone:,} ({100 * gone / len(found.mismatch):.1f} %)"
    return [f"{step / 100:.2f}", share, precision, f"{round(counted['wrong'][0] - wrong):,}"]


def test_the_slider_shows_what_would_be_removed(page: Page, cleaned: tuple[Cleaned, Path]) -> None:
    found = cleaned[0]
    start = round(100 * found.threshold)
    assert shown(page) == expected(found, start)
    counts = []
    for step in (0, 30, 100):
        page.evaluate(f"{SLIDER}.value = {step}; {SLIDER}.dispatchEvent(new Event('input'))")
        assert shown(page) == expected(found, step)
        rows = [*found.order[:30], *rows_near_threshold(found)]
        assert len(rows) == len(set(rows))
        assert page.evaluate(REMOVED) == (found.mismatch[rows] >= step / 100).sum()
        counts.append(page.evaluate("document.getElementById('gone').textContent"))
    assert len(set(counts)) == 3
    page.evaluate(f"{SLIDER}.focus()")
    page.press("ArrowLeft")
    assert shown(page) == expected(found, 99)
    assert page.evaluate("document.getElementById('again').textContent") == "0.99"


def test_pairs_on_both_sides_of_the_threshold_are_shown(page: Page, cleaned: tuple[Cleaned, Path]) -> None:
    found = cleaned[0]
    near = found.mismatch[rows_near_threshold(found)]
    assert (near < found.threshold).sum() == 10
    assert 0 < (near >= found.threshold).sum() <= 10
    removed = np.sort(found.mismatch[found.mismatch >= found.threshold])
    assert near[near >= found.threshold].min() == removed[0]
    assert near[near < found.threshold].max() == found.mismatch[found.mismatch < found.threshold].max()
    assert page.evaluate("document.querySelectorAll('.pairs')[1].children.length") == len(near)


def test_html_stays_text(page: Page) -> None:
    cells = page.evaluate("[...document.querySelectorAll('td, .caption, .suggestion')].map(e => e.textContent)")
    assert any(SCRIPT in cell for cell in cells)
    assert page.evaluate("document.scripts.length") == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_texts_are_legible_and_fit(page: Page, width: int, scheme: str) -> None:
    page.open(page.evaluate("location.href"), width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tops = page.evaluate("[...document.querySelectorAll('.pairs > li')].map(e => e.offsetTop)")
    assert tops.count(tops[0]) == {1400: 5, 420: 2}[width]
    assert page.evaluate("document.querySelectorAll('.below').length") > 0
    assert page.faint_texts() == []
