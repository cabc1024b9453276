"""Search the built documentation site for each question of docs/faq.md, as a reader does.

``make docs`` runs it after the site was built into .site/. It types the words of each question into the
site's own search, in Debian's chromium, and looks for the answer among the first results.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import serve_folder

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / ".site"
FIRST = 3
"""Pages among the results that a reader looks at."""

SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an and are but by can do does for from has have how i in into is it its my no of on or that "
        "the there this to was what when where which why with",
    )
)
"""Words that nobody types into a search."""


def questions() -> list[str]:
    """The questions of the page: its headings of the third level."""
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    return re.findall(r"^### (.+)$", text, re.MULTILINE)


def anchor(question: str) -> str:
    """The anchor of the question on its page, as Markdown's table of contents makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", question.lower()).strip())


def words(question: str) -> str:
    """What a reader types: the words that mean something, without signs."""
    found = re.findall(r"[\w.]*\w", question)
    return " ".join(word for word in found if word.lower() not in SMALL)


RESULTS = """items => items.map(item =>
    [...item.querySelectorAll("a.md-search-result__link")].map(each => new URL(each.href)))
    .map(links => links.map(each => each.pathname + each.hash))"""


def ask(page: Any, address: str, text: str, tries: int = 15) -> None:
    """Open the site and type `text` into its search, anew until there are results.

    The page does not say when its script listens to the box: what is typed before that is lost.
    """
    from playwright.sync_api import TimeoutError as NoAnswer

    for left in reversed(range(tries)):
        page.goto("about:blank")
        page.goto(f"{address}/index.html")
        page.get_by_role("textbox", name="Search").fill(text)
        try:
            page.wait_for_selector("a.md-search-result__link", state="attached", timeout=20_000)
        except NoAnswer:
            if not left:
                print(f"no result at all: {text}")
                raise
        else:
            return


def missed(address: str) -> dict[str, list[str]]:
    """Each question that the search does not answer -> the pages that it finds instead."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[str]] = {}
    with sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page()
        page.set_default_timeout(300_000)
        for question in questions():
            ask(page, address, words(question))
            pages = page.eval_on_selector_all("li.md-search-result__item", RESULTS)
            links = [link for each in pages[:FIRST] for link in each]
            if f"/faq/#{anchor(question)}" not in links:
                found[question] = [each[0] for each in pages[:FIRST]]
        browser.close()
    return found


def main() -> int:
    """Print what is not found; the exit status."""
    if not (SITE / "search" / "search_index.json").exists():
        sys.exit("there is no site: run `make docs`")
    if shutil.which("chromium") is None:
        print("the search was not tried: it needs the Debian package chromium")
        return 0
    with serve_folder.serve(str(SITE)) as server:
        found = missed(server.url.rstrip("/"))
    for question, results in found.items():
        print(f"not found: {question}", *results, sep="\n    ")
    print(f"the search answers {len(questions()) - len(found)} of {len(questions())} questions")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
