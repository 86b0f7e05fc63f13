"""The page of ``sdr serve`` in a browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from sdr_lightning import Index, Retriever
from sdr_lightning.data import RetrievalDataModule, SceneTokenizer, TabularSource
from sdr_lightning.retrieval.serve import Limits, SearchServer
from tests.browser import Page, browsing
from tests.data.test_tabular import write
from tests.retrieval.test_serve import HOSTILE, running

pytestmark = pytest.mark.slow

NUMBER = 30  # more than the page shows at first
MARKUP = "<b id=bold>bold</b><script>alert(1)</script><img src=x onerror=alert(2)> &lt;"
HITS = "document.querySelectorAll('.hit').length"
SHOWN = "document.getElementById('status').textContent.includes(' result')"
FOCUSED = "[...document.querySelectorAll('.hit')].indexOf(document.activeElement)"


@pytest.fixture(scope="module")
def index(model: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of pictures with captions, with HTML in a file name and in a caption."""
    root = tmp_path_factory.mktemp("page")
    (root / "pictures").mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for number in range(NUMBER):
        name = HOSTILE if number == 3 else f"p{number:02d}.png"
        pixels = np.kron(draw.integers(0, 255, (3, 4, 3), np.uint8), np.ones((50, 50, 1), np.uint8))
        Image.fromarray(pixels).save(root / "pictures" / name)
        rows.append({"image": name, "caption": MARKUP if number == 5 else f"a red cube number {number}"})
    table = write(root / "captions.csv", rows)
    source = TabularSource("mine", table, str(root / "pictures"), val_share=0.0, test_share=0.0)
    data = RetrievalDataModule(source, SceneTokenizer(), 32, 32, cache=str(root / "cache"))
    return Index.build(model, root / "captions.index", data=data, split="train")


@pytest.fixture(scope="module")
def server(index: Index) -> Iterator[SearchServer]:
    yield from running(SearchServer(index, port=0, limits=Limits(upload_bytes=10**5)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browsing() as page:
        yield page


@pytest.fixture
def page(browser: Page, server: SearchServer) -> Iterator[Page]:
    """The start page; afterwards nothing but this server was asked, and no script of a caption or a name has run."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(server.url)
    browser.wait("document.getElementById('size').textContent !== ''")
    yield browser
    assert all(address.startswith((server.url, "blob:")) for address in browser.requests)
    assert not browser.dialogs
    assert not [error for error in browser.errors if "Failed to load resource" not in error]


def words(page: Page, text: str) -> None:
    page.evaluate("document.getElementById('words').select()")
    page.type(text)
    page.press("Enter")
    page.wait(SHOWN)


def captions(page: Page) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('.hit .text')].map(e => e.textContent)")
    return found


def expected(index: Index, **query: Any) -> list[str]:
    return [hit.captions[0] for hit in index.search(**query)]


@pytest.mark.parametrize(("width", "columns"), [(1400, 5), (420, 2)])
def test_words_show_a_grid(page: Page, server: SearchServer, index: Index, width: int, columns: int) -> None:
    page.open(server.url, width)
    page.wait("document.getElementById('size').textContent === '30 images, 30 captions'")
    assert page.evaluate("document.activeElement.id") == "words"
    words(page, "a red cube")
    assert captions(page) == expected(index, text="a red cube", k=24)
    tops = page.evaluate("[...document.querySelectorAll('.hit')].map(e => e.offsetTop)")
    assert tops.count(tops[0]) == columns
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing is beside the window
    page.wait("document.querySelector('.hit img').naturalWidth === 200")
    page.evaluate("document.getElementById('more').focus()")
    page.press("Enter")
    page.wait(f"{HITS} === {NUMBER}")
    assert page.evaluate(FOCUSED) == 24  # the first new one
    assert page.evaluate("document.getElementById('more').hidden")


def test_clicking_an_image_searches_on(page: Page, index: Index) -> None:
    words(page, "a red cube")
    first = index.search("a red cube", k=1)[0]
    page.click(".hit")
    page.wait(f"{HITS} === 24 && document.getElementById('query-name').textContent === '{first.image}'")
    page.wait(f"document.querySelector('.hit .text').textContent !== '{first.captions[0]}'")
    assert captions(page) == expected(index, like=first.image, k=24)
    page.evaluate("history.back()")
    page.wait(f"document.querySelector('.hit .text').textContent === '{first.captions[0]}'")
    assert page.evaluate("document.getElementById('words').value") == "a red cube"
    assert page.evaluate("document.getElementById('query').hidden")


def test_a_picture_of_ones_own_is_a_query(page: Page, index: Index, tmp_path: Path) -> None:
    pixels = np.tile(np.array((200, 30, 30), np.uint8), (20, 30, 1))
    Image.fromarray(pixels).save(tmp_path / "own.png")
    page.choose_file("#file", tmp_path / "own.png")
    page.wait(SHOWN)
    assert captions(page) == expected(index, image=pixels, k=24)
    assert page.evaluate("document.getElementById('query-name').textContent") == "own.png"
    page.wait("document.getElementById('query-picture').naturalWidth === 30")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.choose_file("#file", tmp_path / "broken.png")
    page.wait("document.getElementById('status').textContent.startsWith('the picture cannot be read')")
    assert page.evaluate(HITS) == 0
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(noise, "PNG")
    (tmp_path / "large.png").write_bytes(noise.getvalue())
    page.choose_file("#file", tmp_path / "large.png")
    page.wait("document.getElementById('status').textContent === 'This picture has 0.3 MB, more than 0.1 MB.'")
    page.click("#clear")
    assert page.evaluate("document.getElementById('query').hidden && document.activeElement.id === 'words'")


def test_html_stays_text(page: Page, index: Index) -> None:
    page.click("input[value=captions]")
    words(page, "<i>a</i> red cube")
    page.evaluate("document.getElementById('more').click()")
    page.wait(f"{HITS} === {NUMBER}")
    assert MARKUP in captions(page)
    assert page.evaluate("document.querySelectorAll('#results b, #results script, #results i, [onerror]').length") == 0
    titles = page.evaluate("[...document.querySelectorAll('.hit')].map(e => e.title.split('\\n')[0])")
    row = titles.index(HOSTILE)
    page.evaluate(f"document.querySelectorAll('.hit')[{row}].click()")
    page.wait("!document.getElementById('query').hidden")
    assert page.evaluate("document.getElementById('query-name').textContent") == HOSTILE
    page.wait("document.getElementById('query-picture').naturalWidth === 200")


def test_keys_move_through_the_results(page: Page, index: Index) -> None:
    words(page, "a red cube")
    page.evaluate("document.querySelector('.hit').focus()")
    moved = {"ArrowRight": 1, "ArrowDown": 6, "ArrowLeft": 5, "ArrowUp": 0}
    for key, place in moved.items():
        page.press(key)
        assert page.evaluate(FOCUSED) == place
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    first = index.search("a red cube", k=1)[0]
    page.press("Enter")
    page.wait(f"document.getElementById('query-name').textContent === '{first.image}' && {SHOWN}")
    assert page.evaluate(FOCUSED) == 0  # the keyboard goes on among the new results
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.press("Tab")
    page.press("Tab")
    assert page.evaluate("document.activeElement.name") == "in"
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.evaluate("getComputedStyle(document.querySelector('.file')).outlineStyle") == "solid"


def test_options_are_in_the_address(page: Page, server: SearchServer, index: Index) -> None:
    words(page, "a red cube")
    page.click("#rerank")
    page.wait("document.querySelector('.hit .score').textContent.includes('match')")
    assert captions(page) == expected(index, text="a red cube", k=24, rerank=50)
    page.open(page.evaluate("location.href"))
    page.wait(SHOWN)
    assert captions(page) == expected(index, text="a red cube", k=24, rerank=50)
    page.click("input[value=both]")
    page.wait("document.querySelector('.hit .score').textContent.includes(' · caption · ')")
    assert page.evaluate("document.getElementById('rerank').disabled")
    assert page.evaluate("location.search") == "?q=a+red+cube&in=both"
    page.open(f"{server.url}/?like={quote('none')}")
    page.wait("document.getElementById('status').textContent === \"no image 'none' in this index\"")
    page.wait("document.getElementById('query-picture').hidden")


def test_an_empty_query_and_a_server_that_is_gone_are_said(browser: Page, index: Index) -> None:
    running_ = running(SearchServer(index, port=0))
    browser.open(next(running_).url)
    browser.wait("document.getElementById('size').textContent !== ''")
    browser.press("Enter")
    assert browser.evaluate("document.getElementById('status').textContent") == "Type some words first."
    assert next(running_, None) is None
    browser.type("a cube")
    browser.press("Enter")
    browser.wait("document.getElementById('status').textContent === 'The server does not answer.'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_legible(page: Page, server: SearchServer, scheme: str) -> None:
    for address, found in (("?q=a&in=both", SHOWN), ("?like=none", "document.querySelector('#status.error')")):
        page.open(f"{server.url}/{address}", scheme=scheme)
        page.wait(f"Boolean({found}) && getComputedStyle(document.getElementById('results')).opacity === '1'")
        assert page.faint_texts() == []
    assert page.faint_texts(22) != []  # the greatest contrast is 21
