"""The report as a browser shows it: nothing asked for, nothing complained of, at any width, by keyboard."""

import asyncio
import shutil
from pathlib import Path

import pytest

from experiments.reporting.report import write_report
from tests.experiments.reporting.browser import Tab, chromium

GOLDEN = Path(__file__).parents[2] / "golden" / "report"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:aiohttp"),
]

CONTRAST = """
(() => {
  const light = (c) => {
    const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll('p, th, td, li, h1, h2, figcaption, svg text')]
    .map((e) => light(e.matches('text') ? getComputedStyle(e).fill : getComputedStyle(e).color))
    .map((l) => (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05)));
})()
"""
"""The least contrast of a text with the page, by the formula of WCAG 2.2."""


SMALLEST = (
    "Math.min(...[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height))"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("browser") / "golden"))
    return write_report(folder, lambda plan: f"# {plan}\n").html


def look(profile: Path, visit) -> None:
    async def run() -> None:
        async with chromium(profile) as tab:
            await visit(tab)

    asyncio.run(run())


def test_nothing_is_asked_for_and_nothing_complained_of(report, tmp_path):
    async def visit(tab: Tab) -> None:
        await tab.open(report.as_uri(), 375, 900)
        assert tab.requests() == [report.as_uri()]
        assert tab.complaints() == []
        spoilt = tmp_path / "spoilt.html"  # the test must be able to fail
        text = report.read_text(encoding="utf-8")
        spoilt.write_text(text.replace("<main>", '<main><img src="logo.png"><script>1</script>'), "utf-8")
        await tab.open(spoilt.as_uri(), 375, 900)
        assert len(tab.complaints()) >= 2

    look(tmp_path / "profile", visit)


def test_a_phone_reads_it_in_light_and_dark_without_scrolling_aside(report, tmp_path):
    async def visit(tab: Tab) -> None:
        pages = set()
        for scheme in ("light", "dark"):
            await tab.open(report.as_uri(), 375, 900, scheme)
            assert await tab.value("document.documentElement.scrollWidth") <= 375
            assert await tab.value(CONTRAST) >= 4.5  # WCAG 2.2, level AA
            pages.add(await tab.value("getComputedStyle(document.body).backgroundColor"))
            assert await tab.value(SMALLEST) >= 10  # pixels: the height of a line of 8 point text
        assert len(pages) == 2  # dark is dark

    look(tmp_path / "profile", visit)


def test_the_keyboard_reaches_whatever_scrolls_or_opens(report, tmp_path):
    async def visit(tab: Tab) -> None:
        await tab.open(report.as_uri(), 375, 900)
        wanted = await tab.value("document.querySelectorAll('summary, .scroll, pre').length")
        reached = set()
        for _ in range(wanted + 3):
            await tab.press("Tab", 9)
            where = await tab.value("document.activeElement.outerHTML.slice(0, 200)")
            if where.startswith("<summary") and where not in reached:
                await tab.press("Enter", 13, "\r")
                assert await tab.value("document.activeElement.parentElement.open")
            reached.add(where)
        found = [where for where in reached if not where.startswith("<body")]
        assert len(found) == wanted, sorted(where[:60] for where in found)

    look(tmp_path / "profile", visit)
