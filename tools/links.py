"""Every internal link, image and #fragment of the built site resolves; no page loads anything from elsewhere."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tools.paths import SITE

_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
#: <link> relations that name an address without loading it.
_NAMED_ONLY = {"canonical", "alternate", "author", "next", "prev", "index", "search", "license"}


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        relation = set(found.get("rel", "").split())
        if tag in _LOADED and found.get(_LOADED[tag]) and not (tag == "link" and relation & _NAMED_ONLY):
            self.loads.append(found[_LOADED[tag]])


def problems(site: Path) -> tuple[int, list[str]]:
    """Number of links looked at, and what is wrong with them."""
    # the theme's macro templates under _static are not pages
    paths = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.relative_to(site).parts]
    pages = {path: _Page(path.read_text("utf-8")) for path in paths}
    found, count = [], 0
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: loads {u} from elsewhere" for u in page.loads if urlsplit(u).netloc]
        for link in page.links:
            count += 1
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name}: {link} does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name}: {link} has no such place")
    return count, found


def main() -> None:
    """Command line: check the built site."""
    count, found = problems(SITE.resolve())
    if not count:
        sys.exit(f"{SITE} holds no page: run `make book`")
    print("\n".join(found))
    print(f"{count} links, {len(found)} problems")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
