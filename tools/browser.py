"""Open every page of the built site in headless Chromium and look for what a reader would run into.

Checked on each page: no console error, no failed and no external request, mathematics rendered, images loaded and
described, no horizontal overflow at 320, 390 and 1280 px, axe-core without findings in light and dark apart from
`ALLOWED`. Once: theme toggle, search, and the slider by keyboard. The server listens on loopback only.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tools import assets
from tools.paths import BUILD, SITE

WIDTHS = (320, 390, 1280)
SHOTS = BUILD / "screenshots"
#: Findings of axe-core that are not ours to mend: (rule, part of the element's HTML): why.
ALLOWED = {
    ("aria-deprecated-role", 'role="doc-biblioentry"'): "docutils' markup of a bibliography",
    ("aria-required-children", 'class="citation-list"'): "the same",
}
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--no-first-run",
]  # fmt: skip
_LOOK = r"""() => {
  const article = document.querySelector('article') || document.body;
  const images = [...article.querySelectorAll('img')];
  return {
    math: document.querySelectorAll('.math').length,
    rendered: document.querySelectorAll('mjx-container').length,
    errors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent),
    raw: (article.innerText.match(/\\\(|\\\[|\$\$|\{glue|:::\{|\| *(?:[\u2013\u2014]|---) *\|/g) || []),
    broken: images.filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src),
    nameless: images.filter(i => !i.alt || /[\/]|\.(svg|png)$/.test(i.alt)).map(i => i.src),
  };
}"""
_OVERFLOW = """() => {
  const extra = document.scrollingElement.scrollWidth - document.documentElement.clientWidth;
  if (extra <= 0) return null;
  const clipped = e => e && (getComputedStyle(e).overflowX !== 'visible' || clipped(e.parentElement));
  const wide = [...document.querySelectorAll('article *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !clipped(e.parentElement.closest('article *')));
  return [extra, wide.slice(0, 3).map(e => e.tagName + '.' + e.className)];
}"""
_AXE = """async () => (await axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']})).violations
  .flatMap(v => v.nodes.map(n => [v.id, n.html.slice(0, 160), n.failureSummary.slice(0, 300)]))"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the browser has what it wanted
            super().copyfile(source, outputfile)


@contextmanager
def serve(site: Path) -> Iterator[str]:
    """The site on a free port of 127.0.0.1, until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def chromium() -> str:
    """Path of an installed Chromium, or an explanation."""
    wish = os.environ.get("CHROMIUM")
    found = wish or next(filter(None, map(shutil.which, _CHROMIUM)), None)
    if not found:
        sys.exit("no Chromium found: install Debian's package chromium, or set CHROMIUM to a browser's path")
    return found


class _Watch:
    """Console errors, failed requests and requests to elsewhere of one page."""

    def __init__(self, page: Page, base: str) -> None:
        self.found: list[str] = []
        page.on("console", lambda m: self.found.append(f"console {m.type}: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda e: self.found.append(f"script error: {e}"))
        page.on("requestfailed", lambda r: self.found.append(f"failed request: {r.url}"))
        page.on("response", lambda r: self.found.append(f"status {r.status}: {r.url}") if r.status >= 400 else None)
        page.on("request", lambda r: self._leaves(r.url, base))

    def _leaves(self, url: str, base: str) -> None:
        if not url.startswith((base, "data:", "blob:")):
            self.found.append(f"external request: {url}")


def check_page(browser: Browser, base: str, name: str, axe: str) -> list[str]:
    """Problems of one page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    watch = _Watch(page, base)
    page.goto(f"{base}/{name}", wait_until="load")
    if page.locator(".math").count():
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("() => MathJax.startup.promise.then(() => 1)")
    look = page.evaluate(_LOOK)
    found = []
    if look["rendered"] < look["math"]:
        found.append(f"formulas not rendered: {look['rendered']} drawn of {look['math']}")
    found += [f"formula with an error: {text}" for text in look["errors"]]
    found += [f"raw markup in the text: {text}" for text in look["raw"]]
    found += [f"image does not load: {source}" for source in look["broken"]]
    found += [f"image without a description: {source}" for source in look["nameless"]]
    shot = SHOTS / name.replace("/", "-").removesuffix(".html")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(150)
        if over := page.evaluate(_OVERFLOW):
            found.append(f"{over[0]} px too wide at {width} px: {over[1]}")
        page.screenshot(path=f"{shot}-{width}.png", full_page=True)
    page.evaluate(axe)
    for theme in ("light", "dark"):
        page.evaluate("t => { const d = document.documentElement.dataset; d.theme = d.mode = t }", theme)
        page.wait_for_timeout(400)
        if theme == "dark":
            page.screenshot(path=f"{shot}-dark.png", full_page=True)
        for rule, html, why in page.evaluate(_AXE):
            if not any(rule == allowed and part in html for allowed, part in ALLOWED):
                found.append(f"axe {theme} {rule}: {html} -- {' '.join(why.split())}")
    context.close()
    return watch.found + found


def check_behaviour(browser: Browser, base: str) -> list[str]:
    """Theme toggle, search for a theorem, slider by keyboard."""
    found = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    watch = _Watch(page, base)
    page.goto(f"{base}/book/intro.html")
    seen = set()
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        page.wait_for_timeout(150)
        seen.add(page.evaluate("document.documentElement.dataset.theme"))
    if seen != {"light", "dark"}:
        found.append(f"the theme toggle shows {sorted(seen)}")
    page.keyboard.press("Control+k")
    page.keyboard.type("equal-norm polar factorisation")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html*", timeout=8000)
    page.wait_for_selector("#search-results li", timeout=8000)
    if not page.locator("#search-results a[href*='linear/factor']").count():
        found.append("the search does not find a theorem by its name")
    page.wait_for_load_state("networkidle")  # the search reads the pages it found, and would be cut off
    page.goto(f"{base}/book/linear/factor.html")
    figure = page.locator("figure.resid-slider").first
    knob = figure.locator("input[type=range]")
    curve = figure.locator("svg path[data-curve]").first
    before, reading = curve.get_attribute("d"), figure.locator(".resid-reading").inner_text()
    for _ in range(400):  # by Tab alone, as a reader without a mouse
        if page.evaluate("document.activeElement && document.activeElement.type === 'range'"):
            break
        page.keyboard.press("Tab")
    else:
        found.append("Tab never reaches the slider")
    page.keyboard.press("ArrowRight")
    if curve.get_attribute("d") == before or figure.locator(".resid-reading").inner_text() == reading:
        found.append("the arrow keys do not move the slider")
    if knob.get_attribute("aria-valuetext") is None:
        found.append("the slider does not say its value")
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(f"{base}/book/linear/factor.html")
    if not (
        plain.locator("figure.resid-slider svg path[data-curve]").count()
        and plain.locator("figure.resid-slider details li").count()
    ):
        found.append("without JavaScript the slider figure is empty")
    return watch.found + found


def main() -> None:
    """Command line: check every page, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", help="pages below the site, such as book/intro.html; default all")
    wanted = parser.parse_args().pages
    names = wanted or sorted(p.relative_to(SITE).as_posix() for p in (SITE / "book").rglob("*.html"))
    if not names:
        sys.exit(f"{SITE} holds no page: run `make book`")
    axe = (assets.fetch(assets.AXE) / "axe.min.js").read_text("utf-8")
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True)
    bad = 0
    with serve(SITE) as base, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=_FLAGS)
        for name in names:
            started = time.perf_counter()
            found = check_page(browser, base, name, axe)
            print(f"{name}: {len(found)} problems, {time.perf_counter() - started:.1f} s", flush=True)
            for problem in found[:20]:
                print(f"  {problem[:500]}")
            bad += len(found)
        if not wanted:
            for problem in check_behaviour(browser, base):
                print(f"  behaviour: {problem[:500]}")
                bad += 1
        browser.close()
    print(f"{len(names)} pages, {bad} problems; screenshots in {SHOTS.relative_to(BUILD.parent)}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
