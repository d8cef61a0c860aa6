"""What `sepo report` writes, as far as no browser is needed to see it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from stages import compare
from stages.configs import CompareConfig
from stages.errors import SepoError
from stages.report import sections
from stages.report.example_pairs import read_sample
from stages.report.token_selection import TokenSelector
from stages.report.visible import readable
from stages.reporting import Quiet
from stages.store.place import place_of
from stages.store.scores import open_scores
from stages.store.shards import write_shard
from stages.tokens.fingerprint import vocabulary_hash
from stages.types import PairLogps
from tests.report.pages import HOSTILE, write_page, write_scores
from tests.test_compare import evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chatml, chat_folder):
    root = tmp_path_factory.mktemp("page")
    write_scores(root / "scores", chatml, chat_folder)
    records = [{"phase": "sepo", "step": n, "loss": 1 / n, "chosen_logp": -1.0} for n in range(1, 600)]
    for name in ("one", "two"):
        (root / "runs" / name).mkdir(parents=True)
        made = {"format": 1, "stage": "train-policy", "counts": {"dropped": {"too long": 3}}, "warnings": [HOSTILE]}
        (root / "runs" / name / "manifest.json").write_text(json.dumps(made))
        lines = [json.dumps(record) for record in records] + [
            "{damaged",
            '{"phase": "sepo", "step": 600, "loss": null}',
        ]
        (root / "runs" / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def few_plots(monkeypatch):
    """For tests that look at something else: plots take most of the time."""
    monkeypatch.setattr(sections, "score_plots", lambda *_: [])


def test_the_same_again_is_nothing_to_do_and_other_things_are_not_written_over(few_plots, folder, tmp_path):
    output = tmp_path / "r.html"
    assert write_page(output, folder / "scores").fresh
    first = output.read_bytes()
    assert not write_page(output, folder / "scores").fresh
    with pytest.raises(SepoError, match="shows something else"):
        write_page(output, folder / "scores", pairs=2)
    assert output.read_bytes() == first
    assert write_page(output, folder / "scores", pairs=2, overwrite=True).fresh
    output.write_text("<!doctype html><p>mine")
    with pytest.raises(SepoError, match="no page of sepo report"):
        write_page(output, folder / "scores", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_what_cannot_be_shown_is_named_with_a_hint(few_plots, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text('{"format": 1}')
    for given, said in (("empty", "nothing to show"), ("gone", "is not there"), ("notes.json", "no evaluation"),
                        ("other", "does not say which command")):  # fmt: skip
        with pytest.raises(SepoError, match=said) as caught:
            write_page(tmp_path / "r.html", tmp_path / given)
        assert "train-policy" in caught.value.hint
    shutil.copytree(folder / "scores", tmp_path / "others")
    with pytest.raises(SepoError, match="are both scores"):
        write_page(tmp_path / "r.html", folder / "scores", tmp_path / "others")
    assert not (tmp_path / "r.html").exists()


def test_a_damaged_evaluation_is_a_mistake_of_the_world(tmp_path):
    path = evaluation(tmp_path / "e.json", {0: (1.0, 0.0)})
    with pytest.raises(SepoError, match=r"e\.json is not what `sepo evaluate` writes"):
        write_page(tmp_path / "r.html", path)


def test_runs_stand_beside_each_other_with_where_they_come_from(folder, tmp_path):
    write_page(tmp_path / "r.html", folder / "runs")
    text = (tmp_path / "r.html").read_text()
    assert "one (sepo) from 1 at step 1 to 0.001669 at step 599; two (sepo)" in text
    assert re.search(r"dropped, too long</th><td>3<", text)
    assert "<script>alert" not in text
    assert r"&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;b&gt;\u2028\u202eevil\x00\x1b[31m" in text
    # One colour a run, and the one of the other is not it.
    loss = text[text.index('id="plot-loss"') : text.index('id="plot-chosen-logp"')]
    assert "var(--run-0)" in loss
    assert "var(--run-1)" in loss
    assert "var(--run-2)" not in loss


def test_a_comparison_is_drawn_with_the_paths_of_its_runs(tmp_path):
    runs = [f"a={evaluation(tmp_path / f'{seed}.json', {0: (1.0, 0.0), 8: (3.0, 0.4)}, seed=seed)}" for seed in (1, 2)]
    runs += [f"b={evaluation(tmp_path / 'b.json', {0: (1.0, 0.0), 8: (2.0, 1.5)})}"]
    compare.run(CompareConfig(runs=tuple(runs), output_dir=str(tmp_path / "c")), Quiet())
    write_page(tmp_path / "r.html", tmp_path / "c", figures=str(tmp_path / "figures"))
    text = (tmp_path / "r.html").read_text()
    assert "a ends at reward +3 and KL 0.4; b ends at reward +2 and KL 1.5" in text
    assert re.search(r'<th scope="row">a</th><td>2</td><td>\+3\.00 \[\+3\.00, \+3\.00\]', text)
    assert "Differences from a, paired by seed" in text
    assert re.search(r'<th scope="row">b</th><td>-1\.00</td>', text)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"reward-kl.svg", "reward-kl.pdf"}


def test_figures_are_for_papers(folder, tmp_path):
    options = {"figures": str(tmp_path / "f")}
    write_page(tmp_path / "r.html", folder / "runs/one", **options)
    assert not write_page(tmp_path / "r.html", folder / "runs/one", **options).fresh
    svg = ElementTree.parse(tmp_path / "f/loss.svg").getroot()
    assert float(svg.get("width").removesuffix("pt")) == pytest.approx(3.3 * 72)
    sizes = [
        float(size)
        for size in re.findall(r"font(?:-size)?: (?:\d+ )?([\d.]+)px", (tmp_path / "f/loss.svg").read_text())
    ]
    assert min(sizes) >= 6.5
    # Letters of type 42, and none of type 3.
    pdf = (tmp_path / "f/loss.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    (tmp_path / "f/loss.pdf").write_bytes(b"mine")
    with pytest.raises(SepoError, match=r"loss\.pdf is there already"):
        write_page(tmp_path / "r.html", folder / "runs/one", **options)


def test_plots_on_a_page_have_words_and_the_colours_of_the_page(folder, tmp_path):
    write_page(tmp_path / "r.html", folder / "scores", folder / "runs")
    text = (tmp_path / "r.html").read_text()
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 9
    for plot in plots:
        assert re.match(r'<svg viewBox="[\d. ]+" role="img" aria-label="[^"]+[0-9][^"]*"', plot)
        assert not re.search(
            "#[0-9a-f]{6}|font-family|<style|<metadata|http", plot.partition(">")[2].replace(' xlink:href="#', "")
        )
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len({*names})
    style = (tmp_path / "r.html").read_text().partition("</style>")[0]
    for name in {name for plot in plots for name in re.findall(r"var\((--[\w-]+)\)", plot)}:
        assert f"{name}: light-dark(" in style


def test_more_pairs_are_sampled_by_the_seed_and_the_page_says_so(few_plots, folder, tmp_path):
    shown = []
    for seed in (1, 2, 1):
        output = tmp_path / f"{len(shown)}.html"
        write_page(output, folder / "scores", pairs=4, seed=seed)
        assert f"4 of 12 pairs, drawn by the seed {seed}." in output.read_text()
        shown.append(re.findall('class="pair[^"]*" id="([^"]*)"', output.read_text()))
    assert len(shown[0]) == 4
    assert shown[0] == shown[2] != shown[1]


def test_a_sample_knows_of_all_pairs_how_long_they_are_and_their_exact_median(folder):
    scores = open_scores(folder / "scores")
    rows = [*scores.rows()]
    selector = TokenSelector(scores, "oracle", {}, 0)
    every = np.concatenate([side for row in rows for side in row.scores])
    near = float(np.median(every)) * 1.001
    found = read_sample(scores, selector, near, count=3, seed=0, reporter=Quiet())
    assert found.median == float(np.median(every))
    assert found.pairs == 12
    lengths = np.array([len(row.scores.rejected) for row in rows])
    assert found.lengths["rejected"] == {int(each): int((lengths == each).sum()) for each in {*lengths}}
    assert read_sample(scores, selector, near + 1, count=3, seed=0, reporter=Quiet()).median is None


def test_without_a_tokenizer_tokens_are_ids(few_plots, folder, tmp_path, chatml):
    rows = write_scores(tmp_path / "scores", chatml, tmp_path / "gone")
    reporter = Quiet()
    write_page(tmp_path / "r.html", tmp_path / "scores", reporter=reporter)
    assert "tokens are shown by their ids" in reporter.warnings[0]
    tokens = re.findall(r"<i[^>]*>([^<]*)</i>", (tmp_path / "r.html").read_text().partition('id="pair-0"')[2])
    assert tokens[: len(rows[0].pair.chosen_ids)] == [f"{each} " for each in rows[0].pair.chosen_ids]


def test_pairs_of_one_number_have_places_of_their_own(few_plots, folder, tmp_path, chatml, chat_folder):
    from tests.report import pages

    number = pages.token_pair
    pages.token_pair = lambda pair_id, *ids: number(7, *ids)
    try:
        write_scores(tmp_path / "scores", chatml, chat_folder, pairs=2)
    finally:
        pages.token_pair = number
    write_page(tmp_path / "r.html", tmp_path / "scores")
    assert re.findall('class="pair[^"]*" id="([^"]*)"', (tmp_path / "r.html").read_text()) == ["pair-7", "pair-7-row-1"]


def test_options_are_what_is_underlined_at_first(few_plots, folder, tmp_path):
    for options, taken in (({"chosen_ratio": 0.123, "rejected_ratio": 1.0}, 1.0), ({"select": "all"}, 1.0)):
        output = tmp_path / f"{len(options)}.html"
        write_page(output, folder / "scores", **options)
        rejected = (
            output.read_text().partition('id="pair-3"')[2].partition("<h4>Rejected")[2].partition("</section>")[0]
        )
        assert len(re.findall("<i class=[A-Z]>", rejected)) == taken * len(re.findall("<i", rejected))


def test_it_loads_no_torch(folder, tmp_path):
    code = f"""
import sys
from stages import report_page
from stages.configs import ReportConfig
from stages.report import sections
from stages.reporting import Quiet
sections.score_plots = lambda *_: []
report_page.run(ReportConfig(folders=({str(folder / "scores")!r}, {str(folder / "runs/one")!r}), output={str(tmp_path / "r.html")!r}), Quiet())
assert not {{"torch", "transformers"}} & {{*sys.modules}}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" a b", " a b"), ("a  b\n", "a··b⏎\n"), ("\t", "⇥"), ("\u200f\0", r"\u200f\x00"), ("日本", "日本"), (" ", " ")],
)
def test_prose_keeps_its_blanks_and_lines(text, shown):
    assert readable(text) == shown


@pytest.mark.parametrize("noise", [0.05, None])
def test_scores_that_are_all_alike_are_drawn(tmp_path, chatml, chat_folder, noise):
    rows = write_scores(tmp_path / "scores", chatml, chat_folder, results={"noise": {"p99": noise}} if noise else {})
    rows = [
        row._replace(scores=PairLogps(*(np.full_like(side, 0.5) for side in row.scores)), reference=None)
        for row in rows
    ]
    write_shard(place_of(tmp_path / "scores"), "scores-00000.parquet", rows, "mine", vocabulary_hash(chatml))
    write_page(tmp_path / "r.html", tmp_path / "scores")
    assert "median +0.5, mean +0.5" in (tmp_path / "r.html").read_text()


def _run(folder, *lines, **manifest):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "stage": "train-policy"} | manifest))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_log_of_ill_will_is_shown_without_harm(tmp_path):
    phase = "\ud800\u202e\x00\x1b[31m"
    lines = [{"phase": phase, "step": 1, "loss": 1, "kl_estimate": 0.25}, {"phase": phase, "step": 2, "loss": 10**400}]
    lines += [{"phase": phase, "step": 10**400, "loss": 1}, {"phase": phase, "step": 3, "loss": 1e308}]
    run = _run(tmp_path / "run\x1b", *lines)
    write_page(tmp_path / "r.html", run, run)
    text = (tmp_path / "r.html").read_text()
    assert {letter for letter in text if not letter.isprintable()} == {"\n"}
    # What sepo 0.1.0 called otherwise is there, and what was given twice is there once.
    assert "0.25" in text
    assert text.count("<h3>run") == 1


def test_what_a_later_sepo_wrote_is_not_guessed_at(tmp_path):
    with pytest.raises(SepoError, match="is of format 99"):
        write_page(tmp_path / "r.html", _run(tmp_path / "run", format=99))


def test_figures_replace_no_folder_link_or_pipe(tmp_path):
    run = _run(tmp_path / "run", {"phase": "sepo", "step": 1, "loss": 1})
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")):
        figures = tmp_path / f"figures-{len([*tmp_path.iterdir()])}"
        figures.mkdir()
        make(figures / "loss.svg")
        with pytest.raises(SepoError, match=r"loss\.svg is there already, and is no file"):
            write_page(tmp_path / "r.html", run, figures=str(figures), overwrite=True)
    assert not (tmp_path / "r.html").exists()


def test_damage_in_an_evaluation_is_found_before_it_is_drawn(tmp_path):
    path = evaluation(tmp_path / "e.json", {0: (1.0, 0.0)})
    whole = json.loads(path.read_text())
    whole.pop("files", None)
    whole.pop("checksum", None)
    whole |= {"comparisons": [], "warnings": []}
    whole["models"]["reference"] |= {"pairs": 1, "samples": 1}
    path.write_text(json.dumps(whole))
    write_page(tmp_path / "good.html", path)
    for damage in ({"warnings": 5}, {"models": {"a": {"pairs": 1, "samples": 1, "figures": {"true_reward": None, "sample_kl_per_response": None}}}}):  # fmt: skip
        path.write_text(json.dumps(whole | damage))
        with pytest.raises(SepoError, match=r"e\.json is not what `sepo evaluate` writes"):
            write_page(tmp_path / "r.html", path)
