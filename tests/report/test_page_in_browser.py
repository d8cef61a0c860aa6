"""The page of `sepo report` as its reader has it: driven in Chromium, where there is one."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from stages import results
from stages.configs import ResultsConfig
from stages.method.selection import RuleInputs
from stages.registry import RULES
from stages.reporting import Quiet
from stages.store.scores import open_scores
from tests.benchmarks.folders import alpaca_rows, write_rows
from tests.report.pages import NOISE, write_page, write_scores
from tests.world import manifest, run_policy

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chatml, chat_folder):
    """Scores, a policy of them, and the page of both."""
    root = tmp_path_factory.mktemp("page")
    rows = write_scores(root / "scores", chatml, chat_folder)
    run_policy(root, chat_folder, batch_size=4, max_steps=2)
    write_page(root / "report.html", root / "scores", root / "policy")
    return root, rows


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def window(browser):
    return browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(window, folder):
    with opened_page(window, folder[0] / "report.html") as opened:
        yield opened


@contextmanager
def opened_page(window, path):
    """A page, newly opened; whatever it complains about or asks for fails the test."""
    opened, faults = window.new_page(), []
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("dialog", lambda dialog: faults.append(dialog.message))
    opened.on("request", lambda request: request.url.startswith("file:") or faults.append(request.url))
    opened.goto(f"file://{path}")
    yield opened
    opened.close()
    assert faults == []


def counts(page):
    return page.text_content("#counts")


def underlined(page, most=10**6):
    """Of each response, of so many at most, the places of the tokens that are underlined."""
    script = """most => [...document.querySelectorAll(".tokens")].slice(0, most).map(response =>
        [...response.children].flatMap((token, at) =>
            getComputedStyle(token).borderBottomColor === "rgba(0, 0, 0, 0)" ? [] : [at]))"""
    return page.evaluate(script, most)


def move(page, name, value):
    page.evaluate(
        """([name, value]) => { const field = document.forms.selection.elements[name];
        field.value = value; field.dispatchEvent(new Event("input", { bubbles: true })); }""",
        [name, str(value)],
    )


def expected(rows, rule, **options):
    weights = RULES[rule].load()(RuleInputs(rows, noise=NOISE), **options).drawn()[0]
    return [np.flatnonzero(side).tolist() for pair in weights for side in pair]


def test_the_counts_are_those_of_train_policy(page, folder):
    found = manifest(folder[0] / "policy")["counts"]
    chosen, rejected = (f"{found['selected'][side]} of {found['tokens'][side]}" for side in ("chosen", "rejected"))
    assert f"Selected: {chosen} (" in counts(page)
    assert f"tokens, {rejected} (" in counts(page)


def test_sliders_move_the_underlines(page, folder):
    assert underlined(page) == expected(folder[1], "oracle")
    move(page, "chosen_ratio", 0.1)
    move(page, "rejected_ratio", 0.75)
    assert underlined(page) == expected(folder[1], "oracle", chosen_ratio=0.1, rejected_ratio=0.75)
    assert page.text_content("#selection label:nth-of-type(2) output") == "0.1"


def test_a_rule_moves_the_underlines_and_shows_its_own_options(page, folder):
    page.select_option("[name=rule]", "auto")
    assert underlined(page) == expected(folder[1], "auto")
    assert not page.is_visible("[name=chosen_ratio]")
    move(page, "auto_share", 0.5)
    assert underlined(page) == expected(folder[1], "auto", auto_share=0.5)
    page.select_option("[name=rule]", "oracle")
    page.check("[name=authors_rule]")
    assert underlined(page) == expected(folder[1], "oracle", authors_rule=True)


def test_every_rule_selects_as_python_does_to_the_token(page, folder):
    rows, ratios = folder[1], (0.01, 0.1, 0.28, 0.3, 0.5, 1.0)
    cases = [(rule, {"chosen_ratio": k, "rejected_ratio": ratios[-1 - at]}) for at, k in enumerate(ratios)
             for rule in ("oracle", "inverted", "symmetric", "earliest", "latest")]  # fmt: skip
    cases += [(rule, {"chosen_ratio": k, "rejected_ratio": k, "authors_rule": True})
              for k in ratios for rule in ("oracle", "inverted")]  # fmt: skip
    cases += [("threshold", {"threshold": each}) for each in (-0.25, 0.0, 0.7, 0.375, 9.0)]
    cases += [("auto", {"auto_share": each}) for each in (0.1, 0.8, 1.0)] + [("all", {})]
    script = """cases => cases.map(([rule, options]) => viewer.responses.map(each => {
        const mask = selectTokens(rule, each.scores, each.rejected, { ...viewer.options(), ...options });
        return [...mask].flatMap((taken, at) => taken ? [at] : []);
    }))"""
    for (rule, options), found in zip(cases, page.evaluate(script, cases), strict=True):
        assert found == expected(rows, rule, **options), (rule, options)


def test_the_numbers_arrive_to_the_bit(page, folder):
    found = page.evaluate("viewer.responses.map(each => [[...each.scores], [...each.ids], [...each.logps]])")
    sides = [side for row in folder[1] for side in zip(row.scores, row.pair.parts[1:], row.reference, strict=True)]
    for (scores, ids, logps), wanted in zip(found, sides, strict=True):
        assert scores == wanted[0].tolist()
        assert ids == wanted[1].tolist()
        np.testing.assert_allclose(np.array(logps) / 256, wanted[2], atol=1 / 500)


def test_pairs_are_found_and_ordered(page, folder):
    page.fill("#find", "PARIS, of")
    shown = page.locator(".pair:visible").count()
    assert 0 < shown < 12
    assert page.text_content("#found") == f"{shown} of 12 pairs"
    page.fill("#find", "")
    page.select_option("#sort", "margin-up")
    margins = [float(row.scores.chosen.sum() - row.scores.rejected.sum()) for row in folder[1]]
    found = page.evaluate("[...document.querySelectorAll('.pair')].map(pair => pair.id)")
    assert found == [f"pair-{at}" for at in np.argsort(margins, kind="stable")]
    page.select_option("#sort", "length")
    tokens = page.evaluate(
        "[...document.querySelectorAll('.pair')].map(pair => pair.querySelectorAll('.tokens i').length)"
    )
    assert tokens == sorted(tokens, reverse=True)


def test_a_token_tells_its_figures_under_the_pointer_and_by_keys(page, folder):
    row = folder[1][1]
    best = int(np.argmax(row.scores.chosen))
    place = "() => [...document.querySelectorAll('#pair-1 i')].map(each => each.getBoundingClientRect().y + scrollY)"
    page.locator("#pair-1").scroll_into_view_if_needed()
    before = page.evaluate(place)
    page.locator("#pair-1 .tokens").first.locator("i").nth(best).hover()
    told = {name: page.text_content(f"#detail-{name}") for name in ("id", "position", "score", "logp", "rank", "share")}
    assert told["id"] == str(row.pair.chosen_ids[best])
    assert told["position"] == f"{best + 1} of {len(row.scores.chosen)}"
    assert told["score"] == f"+{row.scores.chosen[best]:#.3g} nats"
    assert told["logp"] == f"\N{MINUS SIGN}{-row.reference.chosen[best]:.2f} nats"
    assert told["rank"] == f"1 of {len(row.scores.chosen)}"
    gains = np.maximum(row.scores.chosen, 0)
    assert told["share"] == f"{100 * gains.max() / gains.sum():.0f}%"
    assert page.evaluate(place) == before
    page.locator("#pair-1 .tokens").last.focus()
    page.keyboard.press("End")
    assert page.text_content("#detail-position") == f"{len(row.scores.rejected)} of {len(row.scores.rejected)}"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    worst = np.argsort(row.scores.rejected, kind="stable").tolist()
    at = min(1, len(worst) - 1)
    assert page.text_content("#detail-rank") == f"{worst.index(at) + 1} of {len(worst)}"


def test_keys_go_from_pair_to_pair_but_not_while_one_types(page):
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("location.hash") == "#pair-1"
    page.keyboard.press("k")
    assert page.evaluate("location.hash") == "#pair-0"
    page.focus("#find")
    page.keyboard.press("j")
    assert page.evaluate("location.hash") == "#pair-0"
    assert page.input_value("#find") == "j"


def test_a_link_leads_to_a_pair_and_the_menu_to_sections(page, folder):
    page.goto("about:blank")
    page.goto(f"file://{folder[0]}/report.html#pair-11")
    box = page.locator("#pair-11").bounding_box()
    assert 0 <= box["y"] < 900
    page.click("nav >> text=Training")
    assert page.is_visible("#plot-loss svg")
    assert not page.is_visible("#tokens")
    assert page.get_attribute("nav a[aria-current]", "href") == "#training"


def lightness(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)")


def test_it_is_dark_where_the_reader_is_and_light_on_request(page):
    assert min(lightness(page)) > 200
    page.emulate_media(color_scheme="dark")
    assert max(lightness(page)) < 60
    ink = page.evaluate("getComputedStyle(document.querySelector('#plot-scores svg text')).fill")
    assert ink != "rgb(29, 33, 39)"
    page.click("#theme")
    assert min(lightness(page)) > 200


@pytest.mark.parametrize("width", [390, 1600])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    for section in ("tokens", "data-set", "training", "provenance"):
        page.click(f"nav a[href='#{section}']")
        assert page.evaluate("document.documentElement.scrollWidth") == width, section
    page.click("nav a[href='#tokens']")
    chosen, rejected = (page.locator("#pair-0 .side").nth(at).bounding_box() for at in range(2))
    assert (rejected["y"] > chosen["y"]) == (width == 390)


def test_the_title_of_a_wide_table_is_read_whole_on_a_phone(browser, tmp_path):
    """The table scrolls below it, in a box of its own."""
    source = write_rows(tmp_path / "annotations.json", alpaca_rows("sepo", [1.0, 2.0] * 20))
    results.run(ResultsConfig(paths=(str(source),), output=str(tmp_path / "results.json")), Quiet())
    write_page(tmp_path / "report.html", tmp_path / "results.json")
    window = browser.new_context(viewport={"width": 390, "height": 844})
    with opened_page(window, tmp_path / "report.html") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        box = page.locator("#benchmarks .wide").last
        box.evaluate("box => box.scrollLeft = 200")
        assert box.evaluate("box => box.scrollLeft") == 200
        title = box.locator("caption span").bounding_box()
        assert title["x"] >= box.bounding_box()["x"]
        assert title["x"] + title["width"] <= 390
    window.close()


def test_hostile_text_is_text(page):
    assert page.locator("script").count() == 2
    assert page.locator("b:text-is('evil')").count() == 0
    text = page.text_content("#pairs")
    assert "</script><script>alert(1)</script><b>" in text
    for escaped in (r"\u2028", r"\u202e", r"evil\x00\x1b[31m &amp; <!--"):
        assert escaped in text


def test_without_scripts_all_can_be_read(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(f"file://{folder[0]}/report.html")
    assert plain.is_visible("#pair-0 .tokens >> nth=0")
    assert plain.is_visible("#plot-loss")
    assert not plain.is_visible("#selection")
    found = manifest(folder[0] / "policy")["counts"]["selected"]
    assert plain.locator("#pairs .tokens i").evaluate_all(
        "all => all.filter(i => /[A-Z]/.test(i.className)).length"
    ) == sum(found.values())
    context.close()


def test_colours_go_from_low_over_none_at_the_median_to_high(page, folder):
    rows = folder[1]
    scores = np.concatenate([side for row in rows for side in row.scores])
    distance = scores - np.float32(np.median(scores))
    letters = page.evaluate(
        "[...document.querySelectorAll('.tokens i')].map(token => token.className.toLowerCase() || 'k')"
    )
    steps = np.array([ord(letter) - ord("a") - 10 for letter in letters])
    grey = steps == 11
    assert grey[np.abs(distance) < 0.9 * NOISE].all()
    assert not grey[np.abs(distance) > 1.1 * NOISE].any()
    assert (np.sign(steps[~grey & (steps != 0)]) == np.sign(distance[~grey & (steps != 0)])).all()
    far = np.quantile(np.abs(distance), 0.98)
    assert (steps[distance >= 1.01 * far] == 10).all()
    assert (np.abs(steps[~grey] - np.clip(distance / far * 10, -10, 10)[~grey]) < 1).all()


def test_the_numbers_block_holds_numbers_alone(folder):
    text = (folder[0] / "report.html").read_text()
    block = text.partition('id="numbers">')[2].partition("</script>")[0]
    assert {*json.loads(block)} == {"scores", "types", "type_of", "wide", "logps", "all_lengths", "median", "noise"}


@pytest.mark.skipif("SEPO_RUN" not in os.environ, reason="SEPO_RUN names no folder with scores and a policy of them")
def test_a_run_of_ones_own_is_driven_alike(window, tmp_path):
    """``SEPO_RUN=runs/demo pytest ...``: scores of `sepo score`, and a policy of the default rule and shares."""
    stages = {manifest(path.parent)["stage"]: path.parent for path in Path(os.environ["SEPO_RUN"]).glob("*/manifest.json")
              if "random" not in path.parent.name and "simpo" not in path.parent.name}  # fmt: skip
    rows = list(open_scores(stages["score"]).rows())
    write_page(tmp_path / "page.html", *Path(os.environ["SEPO_RUN"]).glob("*/"), pairs=len(rows))
    with opened_page(window, tmp_path / "page.html") as page:
        found = manifest(stages["train-policy"])["counts"]
        for side in ("chosen", "rejected"):
            assert f"{found['selected'][side]:,} of {found['tokens'][side]:,} (" in counts(page)
        first = rows[:20]
        for rule, options in (
            ("oracle", {"chosen_ratio": 0.1, "rejected_ratio": 0.5}),
            ("latest", {"chosen_ratio": 0.1, "rejected_ratio": 0.5}),
        ):
            page.select_option("[name=rule]", rule)
            for name, value in options.items():
                move(page, name, value)
            assert underlined(page, 2 * len(first)) == expected(first, rule, **options)
        page.fill("#find", "the")
        assert 0 < page.locator(".pair:visible").count() <= len(rows)
        page.fill("#find", "")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("j")
        assert page.evaluate("location.hash") == f"#pair-{rows[0].pair.pair_id}"
        page.locator(".tokens i").nth(2).hover()
        assert page.text_content("#detail-id") == str(rows[0].pair.chosen_ids[2])
        page.goto("about:blank")
        last = rows[-1].pair.pair_id
        page.goto(f"file://{tmp_path}/page.html#pair-{last}")
        assert 0 <= page.locator(f"#pair-{last}").bounding_box()["y"] < 900
        page.emulate_media(color_scheme="dark")
        assert max(lightness(page)) < 60
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_skip_link_stays_in_the_section_and_a_figure_has_an_address(page):
    page.evaluate("location.hash = '#training'")
    page.evaluate("document.querySelector('.skip').click()")
    page.wait_for_function("location.hash === '#sections'")
    assert page.is_visible("#training")
    assert page.evaluate("document.activeElement.id") == "sections"
    page.evaluate("location.hash = '#plot-margins'")
    page.wait_for_function("scrollY > 100")
    assert page.is_visible("#plot-margins")


def test_an_odd_address_shows_the_page(page, folder):
    page.goto("about:blank")
    page.goto(f"file://{folder[0]}/report.html#%")
    assert page.is_visible("#tokens")
    assert page.is_hidden("#training")


def test_what_is_found_is_in_the_pairs_and_not_in_their_labels(page):
    page.fill("#find", "tokens ·")
    assert page.text_content("#found").startswith("0 of")


def test_escape_closes_the_details(page):
    page.focus(".tokens")
    assert page.is_visible("#details")
    page.keyboard.press("Escape")
    assert page.is_hidden("#details")


def test_paper_is_white_whatever_the_theme(page):
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
