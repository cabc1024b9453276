"""The page in a real browser: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import safeweights.numpy
from safeweights import trust
from safeweights.format.writer import layout
from safeweights.view import export
from safeweights.view.viewing import Viewed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the Debian package chromium")

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that reports what it complains about, and every address it asks."""
    page = browser.new_page(viewport={"width": 1200, "height": 850})
    page.set_default_timeout(60_000)
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


@pytest.fixture
def serve():
    """Start the command on a path; the address of its page."""
    started = []

    def serve(path, *options):
        process = subprocess.Popen(
            [sys.executable, "-m", "safeweights", "view", path, "--no-open", "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(process)
        return json.loads(process.stdout.readline())["address"]

    yield serve
    for process in started:
        process.kill()
        process.communicate()


def tab(page, title):
    page.get_by_role("tab", name=title).click()


def wait_for_rows(page):
    """Wait until no row is a placeholder. (The page forbids eval, which wait_for_function polls with.)"""
    placeholders = page.get_by_role("row").filter(has_text=re.compile("^…"))
    playwright.expect(placeholders).to_have_count(0, timeout=60_000)


def test_a_person_sees_the_model_and_one_tensor(page, serve, model):
    page.goto(serve(model))
    page.wait_for_selector("dl")
    assert page.title().endswith("model - safeweights")
    assert "SomeModel" in page.inner_text("#summary")
    assert "from config.json" in page.inner_text("main")
    tab(page, "Tensors")
    page.wait_for_selector("text=8 tensors")
    page.get_by_label("Search names").fill("broken")
    page.wait_for_selector("text=1 tensor")
    page.get_by_role("row").filter(has_text="broken").click()
    page.wait_for_selector("dialog canvas.picture")
    page.wait_for_selector("text=yellow not finite")
    shown = page.inner_text("dialog")
    assert "NaN\n1" in shown
    page.get_by_role("button", name="Show values").click()
    page.wait_for_selector("text=inf")
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")
    for title, text in (
        ("Modules", "layers.[0-1]"),
        ("Bytes", "model.safetensors"),
        ("Findings", ": ok"),
        ("Trust", "No policy was given"),
        ("Difference", "No other model was given"),
    ):
        tab(page, title)
        page.wait_for_selector(f"[role=tabpanel]:not([hidden]) >> text={text}")
    assert page.complaints == []
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in page.asked)
    assert not any("#" in url and "data/" in url for url in page.asked)


def test_it_works_with_the_keyboard_alone(page, serve, model):
    page.goto(serve(model))
    page.wait_for_selector("dl")
    page.get_by_role("tab", name="Overview").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("[role=row]")
    assert page.evaluate("document.activeElement.textContent") == "Tensors"
    page.get_by_role("grid").focus()
    page.keyboard.press("End")
    page.wait_for_selector("[role=row][aria-selected=true][aria-rowindex='8']")
    page.keyboard.press("Home")
    page.wait_for_selector("[role=row][aria-selected=true][aria-rowindex='1']")
    wait_for_rows(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog canvas.picture")
    page.focus("canvas.picture")
    before = page.inner_text("dialog [role=status]")
    page.keyboard.press("+")
    playwright.expect(page.locator("dialog [role=status]")).not_to_have_text(before, timeout=60_000)
    assert page.complaints == []


def test_text_of_a_hostile_model_stays_text(page, serve, hostile):
    page.goto(serve(hostile))
    page.wait_for_selector("dl")
    for title in ("Modules", "Tensors", "Bytes", "Findings"):
        tab(page, title)
        page.wait_for_timeout(200)
    page.get_by_role("tab", name="Tensors").click()
    page.get_by_role("row").first.click()
    page.wait_for_selector("dialog dl")
    assert "owned" not in page.title()
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.images.length") == 0
    text = page.inner_text("body")
    assert not {"\u202e", "\x1b", "\u2066"} & set(text)
    assert page.complaints == []


def test_signature_policy_and_difference_are_shown(page, serve, model, hostile, tmp_path):
    pytest.importorskip("cryptography", reason="signatures need the extra [trust]")
    trust.generate_key(tmp_path / "me")
    trust.sign(model, trust.load_private_key(tmp_path / "me"))
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rules]]\npattern = "*"\nlevel = "pinned"\n')
    page.goto(
        serve(model, "--key", f"{tmp_path}/me.pub", "--policy", str(policy), "--compare", hostile)
    )
    page.wait_for_selector("dl")
    tab(page, "Trust")
    page.wait_for_selector("text=The signature is valid")
    page.wait_for_selector("text=The policy refuses this model")
    assert "against" in page.inner_text("[role=tabpanel]:not([hidden])")
    tab(page, "Difference")
    page.wait_for_selector("text=The models differ")
    shown = page.inner_text("[role=tabpanel]:not([hidden])")
    assert "Removed (8)" in shown
    assert "Added (11)" in shown
    assert not {"\u202e", "\x1b", "\u2066"} & set(page.inner_text("body"))
    assert "owned" not in page.title()
    assert page.complaints == []


def test_without_the_token_nothing_is_shown(page, serve, model):
    page.goto(serve(model).partition("#")[0])
    page.wait_for_selector("[role=alert]")
    assert "token" in page.inner_text("#summary")
    assert "SomeModel" not in page.content()


def test_a_page_of_another_site_gets_nothing(page, serve, model):
    """It may send requests, but not read answers, nor show the page in a frame."""
    address = serve(model)
    where, _, token = address.partition("#")
    other = serve(model)
    page.goto(other)  # another origin: another port
    page.wait_for_selector("dl")
    found = page.evaluate(
        """async ([where, token]) => {
            const tried = [];
            for (const headers of [{}, {Authorization: `Bearer ${token}`}])
                try { tried.push((await fetch(where + "data/model", {headers})).status); }
                catch (error) { tried.push("refused"); }
            return tried;
        }""",
        [where, token],
    )
    assert found == ["refused", "refused"]


def test_a_hundred_thousand_tensors_are_a_short_page(page, serve, tmp_path):
    path = str(tmp_path / "many.safetensors")
    safeweights.numpy.save_file({f"layers.{n}.w": np.zeros(1, "u1") for n in range(100_000)}, path)
    page.goto(serve(path))
    page.wait_for_selector("dl")
    tab(page, "Tensors")
    page.wait_for_selector("text=100,000 tensors")
    page.get_by_role("grid").focus()
    page.keyboard.press("End")
    page.wait_for_selector("[role=row][aria-rowindex='100000']")
    wait_for_rows(page)
    assert page.evaluate("document.querySelectorAll('[role=row]').length") < 100
    assert "layers." in page.inner_text("[role=row][aria-rowindex='100000']")


def test_a_million_tensors_and_ten_thousand_keys_are_a_short_page(page, serve, tmp_path):
    path = str(tmp_path / "many.safetensors")
    tensors = [(f"b{n % 7}.{n}.w", "F32", (0,)) for n in range(1_000_000)]
    header, head = layout(tensors, {f"key {n}": "<b>value</b>" for n in range(10_000)})
    with open(path, "wb") as file:
        file.write(head + bytes(header.data_size))
    del tensors, header, head
    page.goto(serve(path))
    page.wait_for_selector("text=Metadata (10,000 keys)")
    assert page.evaluate("document.querySelectorAll('tr').length") < 1200
    tab(page, "Tensors")
    page.wait_for_selector("text=1,000,000 tensors")
    page.get_by_role("grid").focus()
    page.keyboard.press("End")
    page.wait_for_selector("[role=row][aria-rowindex='1000000']")
    wait_for_rows(page)
    page.get_by_label("Search names").fill("b3.999995")
    page.wait_for_selector("text=1 tensor")
    for title in ("Modules", "Bytes", "Overview"):
        tab(page, title)
        page.wait_for_selector("[role=tabpanel]:not([hidden]) >> visible=true")
    assert page.evaluate("document.querySelectorAll('*').length") < 20_000
    assert page.complaints == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_all_not_finite_are_shown(page, serve, tmp_path, value):
    path = str(tmp_path / "nan.safetensors")
    safeweights.numpy.save_file({"w": np.full((40, 30), value, "f4")}, path)
    page.goto(serve(path))
    page.wait_for_selector("dl")
    tab(page, "Tensors")
    page.get_by_role("row").first.click()
    page.wait_for_selector("text=yellow not finite")
    assert f"{'NaN' if np.isnan(value) else 'infinite'}\n1,200" in page.inner_text("dialog")
    assert page.evaluate(
        "[...document.querySelector('canvas.picture').getContext('2d').getImageData(0, 0, 1, 1).data]"
    ) == [250, 200, 0, 255]
    page.get_by_role("button", name="Show values").click()
    page.wait_for_selector(f"dialog >> text={value}")
    assert page.complaints == []


def test_a_replaced_file_is_said(page, serve, model):
    page.goto(serve(model))
    page.wait_for_selector("dl")
    path = os.path.join(model, "model.safetensors")
    safeweights.numpy.save_file({"other": np.zeros(1, "f4")}, path)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.wait_for_selector("text=The files were changed")


def test_a_report_needs_no_server(page, hostile, model, tmp_path):
    for number, each in enumerate((model, hostile)):
        target = tmp_path / f"{number}.html"
        target.write_text(export.report(Viewed(each), statistics=True), encoding="utf-8")
        page.goto(target.as_uri())
        page.wait_for_selector("dl")
        tab(page, "Tensors")
        page.get_by_role("row").first.click()
        page.wait_for_selector("dialog .histogram canvas")
        page.keyboard.press("Escape")
        assert "owned" not in page.title()
        assert page.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in page.asked)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_it_fits_the_window_and_can_be_read(browser, serve, model, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(60_000)
    page.goto(serve(model))
    page.wait_for_selector("dl")
    for title in ("Overview", "Modules", "Tensors", "Bytes", "Findings"):
        tab(page, title)
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = page.evaluate(
        "[['body', 'color'], ['html', 'backgroundColor']]"
        ".map(([name, part]) => getComputedStyle(document.querySelector(name))[part])"
    )
    ink, paper = (sum(map(int, text.strip("rgb()").split(",")[:3])) for text in colours)
    assert (ink < paper) == (scheme == "light")
    assert abs(ink - paper) > 400
    page.close()
