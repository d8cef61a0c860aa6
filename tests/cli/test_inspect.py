"""`sepo inspect`: what it shows, where, and what it never shows."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from sepo_cli.console import print_table
from sepo_cli.heat_map import BRACKETS, print_heat_map
from stages.method.selection import RuleInputs
from stages.registry import RULES
from stages.reporting import HeatMap, Piece, Table
from stages.store.scores import open_scores
from stages.types import PairLogps
from tests.scored import ENGLISH, FOREIGN, HOSTILE, score_folder, scored_pair, text_folder
from tests.tokenizers_zoo import byte_level, sentencepiece

TEXTS = [ENGLISH, FOREIGN, HOSTILE, (*ENGLISH[::-1],)]


@pytest.fixture(scope="module", params=[byte_level, lambda: sentencepiece("always")], ids=["bytes", "sentencepiece"])
def folder(request, tmp_path_factory):
    return text_folder(tmp_path_factory.mktemp("inspected") / "s", request.param(), TEXTS, noise=0.3)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return text_folder(tmp_path_factory.mktemp("inspected") / "s", byte_level(), TEXTS, noise=0.3)


def shown(sepo, *arguments):
    code, out, err = sepo("inspect", *arguments)
    assert code == 0, err
    return out


def pairs(sepo, *arguments):
    return [int(number) for number in re.findall(r"^Pair (\d+)", shown(sepo, *arguments), flags=re.MULTILINE)]


def test_the_summary(sepo, folder):
    text = shown(sepo, folder)
    for part in ("pairs  ", "median ", "0.3 nats (99th percentile)", "What the top tokens hold", "| 30% |",
                 "| at 90-100% |", "| control | 4 |", "Token types selected most above chance"):  # fmt: skip
        assert part in text
    found = json.loads(shown(sepo, folder, "--json"))
    assert found["pairs"] == 4
    assert len(found["chosen"]["cumulative"]) == 20
    assert found["cumulative"] is None
    assert sum(found["histogram"]["chosen"]) == found["chosen"]["tokens"]
    assert {str(each["id"]) for each in found["chosen"]["types"]} <= {*found["texts"]}


def test_every_token_of_a_pair_with_its_text_and_what_was_selected(sepo, folder):
    [pair] = json.loads(shown(sepo, folder, "--pair", 1, "--chosen-ratio", 0.2, "--json"))["pairs"]
    joined = {
        side: re.sub("[\ufffd]", "", "".join(token["text"] for token in pair[side])) for side in ("chosen", "rejected")
    }
    assert joined["chosen"] == "東京です。🙂👩\\u200d👩\\u200d👧·café«</s>»"
    assert joined["rejected"] == "مرحبا·بالعالم،·كيف·الحال؟«</s>»"
    assert pair["prompt"] == FOREIGN[0]
    rows = [*open_scores(folder).rows()]
    weights = RULES["oracle"].load()(RuleInputs(rows), chosen_ratio=0.2).drawn()[0][1]
    for side in ("chosen", "rejected"):
        assert [token["selected"] for token in pair[side]] == (getattr(weights, side) > 0).tolist()
        assert [token["score"] for token in pair[side]] == getattr(rows[1].scores, side).tolist()
        assert sorted(token["rank"] for token in pair[side]) == [*range(1, len(pair[side]) + 1)]
        assert [token["reference"] for token in pair[side]] == getattr(rows[1].reference, side).tolist()
    best = max(pair["chosen"], key=lambda token: token["score"])
    worst = min(pair["rejected"], key=lambda token: token["score"])
    assert (best["rank"], best["selected"], best["level"] > 0) == (1, True, True)
    assert (worst["rank"], worst["selected"], worst["level"] < 0) == (1, True, True)


def test_pairs_are_found_and_sorted(sepo, scores):
    found = json.loads(shown(sepo, scores, "--limit", 9, "--json"))
    margins = [pair["margin"] for pair in found["pairs"]]
    lengths = [len(pair["chosen"]) + len(pair["rejected"]) for pair in found["pairs"]]
    near = [
        sum(abs(token["score"] - found["scale"]["median"]) < 0.3 for token in pair["chosen"] + pair["rejected"])
        / length
        for pair, length in zip(found["pairs"], lengths, strict=True)
    ]
    order = [*range(4)]
    assert pairs(sepo, scores, "--sort", "margin") == sorted(order, key=lambda row: -margins[row])
    assert pairs(sepo, scores, "--sort", "length") == sorted(order, key=lambda row: -lengths[row])
    assert pairs(sepo, scores, "--sort", "noise") == sorted(order, key=lambda row: -near[row])
    assert pairs(sepo, scores, "--sort", "wrong") == sorted(
        (r for r in order if margins[r] < 0), key=lambda r: margins[r]
    )
    assert pairs(sepo, scores, "--limit", 2) == [0, 1]
    assert pairs(sepo, scores, "--search", "SORRY") == pairs(sepo, scores, "--search", "it is 42") == [0, 3]
    assert pairs(sepo, scores, "--search", "東京") == [1]
    assert pairs(sepo, scores, "--search", "is it?", "--sort", "length", "--limit", "1") == [0]
    assert shown(sepo, scores, "--search", "nowhere").startswith("0 of 0 pairs found among the 4 of ")


@pytest.mark.parametrize(
    "options", [["--select", "latest"], ["--select", "symmetric"], ["--select", "random"], ["--select", "random", "--seed", "7"],
                ["--chosen-ratio", "0.5"], ["--rejected-ratio", "0.6"], ["--pair", "0"], ["--limit", "1"], ["--authors-rule"],
                ["--select", "threshold", "--threshold", "0.5"], ["--select", "auto", "--auto-share", "0.3"]]
)  # fmt: skip
def test_every_option_changes_what_is_shown(sepo, scores, options):
    less = options[:-2] if len(options) > 2 else []
    assert json.loads(shown(sepo, scores, "--json", *options)) != json.loads(shown(sepo, scores, "--json", *less))


def test_what_is_selected_is_seen_without_colours(sepo, folder):
    text = shown(sepo, folder, "--pair", 0)
    [pair] = json.loads(shown(sepo, folder, "--pair", 0, "--json"))["pairs"]
    wanted = "".join(token["text"].join(BRACKETS) if token["selected"] else token["text"] for token in pair["chosen"])
    assert wanted in text.splitlines()
    assert "\x1b" not in text


@pytest.mark.parametrize("json_too", [[], ["--json"]])
@pytest.mark.parametrize("options", [[], ["--pair", "2"]])
def test_texts_control_nothing(sepo, folder, options, json_too):
    text = shown(sepo, folder, *options, *json_too)
    assert all(letter.isprintable() or letter == "\u200e" for letter in text.replace("\n", ""))
    if options and not json_too:
        assert "<script>alert(1)</script>" in text
        assert "[bold]" in text.replace(BRACKETS[0], "").replace(BRACKETS[1], "")


def terminal(heat, width=80, **options):
    out = io.StringIO()
    environment = {"TERM": "xterm-256color"} | options.pop("environment", {})
    print_heat_map(Console(file=out, force_terminal=True, width=width, _environ=environment, **options), heat)
    return out.getvalue()


HEAT = HeatMap(
    "t [bold]",
    (("prompt", [Piece("a " * 70)]), ("chosen", [Piece("日本語", -10), Piece("·[red]good", 7, True), Piece("x⏎")] * 9),
     ("rejected", [Piece("🙂مرحبا", 3), Piece("\x1b[2J"), Piece("é" * 100, 0, True)])),
    [Piece("0")],
)  # fmt: skip


@pytest.mark.parametrize("width", [20, 80, 119, 120, 160])
def test_no_line_is_wider_than_the_terminal(width):
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal(HEAT, width, color_system="truecolor")).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert ("chosen" in lines[lines.index("") + 4]) == ("rejected" in lines[lines.index("") + 4]) or width < 120
    assert any("chosen" in line and "rejected" in line for line in lines) == (width >= 120)
    text = "".join(lines).replace("\u200e", "").replace(" ", "")
    assert text.count("日本語·[red]goodx⏎") == 9 or width >= 120
    assert text.count("é") == 100


def test_colours_and_marks():
    text = terminal(HEAT, color_system="truecolor")
    assert "\x1b[38;2;0;0;0;48;2;255;140;0m日本語" in text
    assert "\x1b[1;4;38;2;0;0;0;48;2;94;150;224m·[red]good" in text
    assert "\x1b[1;4m" + "é" * 20 in text
    assert "\u200e🙂مرحبا\u200e" in text
    assert "\\x1b[2J" in text
    assert "\x1b[2J" not in text
    # Not a level that was shown above: rich remembers how a style was written.
    few = terminal(HeatMap("", (("", [Piece("low", -9), Piece("high", 9)]),), []), color_system="256")
    assert re.search(r"48;5;208mlow.*48;5;69mhigh", few), few


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours_has_brackets(environment):
    text = terminal(HEAT, environment=environment)
    assert "⟦·[red]good⟧" in text
    assert not re.search(r"\x1b\[[\d;]*[34]8;", text)


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_figures_are_not_torn_where_a_terminal_is_narrow(width):
    figures = [f"{number:+.3f}" for number in range(7)]
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    print_table(screen, Table("means", ["part", *"abcdefg"], [["«" + "long" * 30 + "»", *figures]]))
    assert [figure for figure in figures if figure not in screen.file.getvalue()] == []


def test_a_margin_of_nothing_is_a_tie_and_not_wrong(sepo, tmp_path):
    scores = PairLogps(*(np.ones(1, np.float32) for _ in range(2)))
    folder = score_folder(tmp_path / "s", [scored_pair(0, [1], [5], [6])._replace(scores=scores)])
    assert "Pair 0: margin +0.000 nats, a tie\n" in shown(sepo, folder, "--pair", 0)


def test_scores_as_large_as_can_be_are_sorted_by_noise_without_a_warning(sepo, tmp_path, recwarn):
    most = np.array([3.4e38, 3.4e38, -3.4e38], np.float32)
    pair = scored_pair(0, [1], [5, 6, 7], [6, 7, 8])._replace(scores=PairLogps(most, most))
    shown(sepo, score_folder(tmp_path / "s", [pair], noise=0.1), "--sort", "noise")
    assert [str(each.message) for each in recwarn if "overflow" in str(each.message)] == []


def test_a_folder_without_a_tokenizer_shows_ids_and_says_why(sepo, tmp_path):
    rows = [scored_pair(number, [1], [5, 6 + number], [7], reference=False) for number in range(3)]
    folder = score_folder(tmp_path / "s", rows)
    code, out, err = sepo("inspect", folder, "--pair", 1)
    assert code == 0
    assert "names no tokenizer, so tokens are shown by their ids" in err
    assert "--tokenizer FOLDER" in err
    assert re.search("5 .*7 ", out)
    code, _, err = sepo("inspect", folder, "--search", "x")
    assert code == 1
    assert "search needs the text of tokens" in err
    code, _, err = sepo("inspect", folder, "--sort", "noise")
    assert (code, "says nothing of its scores' noise" in err) == (1, True)


def test_a_folder_without_rows_and_a_pair_that_is_not_there(sepo, scores, tmp_path):
    folder = score_folder(tmp_path / "s", [])
    assert "holds no pair" in shown(sepo, folder)
    assert json.loads(shown(sepo, folder, "--json", "--sort", "wrong")) == {"pairs": 0}
    code, out, err = sepo("inspect", scores, "--pair", 17)
    assert (code, out) == (1, "")
    assert "has no pair 17" in err
    assert "from 0 to 3" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--select", "all", "--chosen-ratio", "0.5"], "chosen_ratio is no option of select all"),
        (["--pair", "1", "--sort", "margin"], "pair names what to show"),
        (["--select", "confidence"], "select must be one of"),
        (["--select", "column"], "comes without weights"),
        (["--tokenizer", "."], "there is no tokenizer.json in ."),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(sepo, scores, options, said):
    code, out, err = sepo("inspect", scores, *options)
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_it_loads_no_torch(scores):
    program = "import sys; sys.argv = ['sepo', 'inspect', {!r}]\ntry:\n import sepo_cli.__main__ as m; m.start()\nfinally:\n print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program.format(str(scores))], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False"
