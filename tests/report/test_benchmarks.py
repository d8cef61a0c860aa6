"""The page's section on benchmarks."""

import json
import re

import pytest

from stages import results
from stages.configs import ResultsConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from tests.benchmarks.folders import alpaca_rows, arena_rows, write_rows
from tests.report.pages import HOSTILE, write_page


@pytest.fixture
def report(tmp_path):
    write_rows(tmp_path / "a/annotations.json", alpaca_rows("sepo", [1.0, 2.0] * 20))
    write_rows(tmp_path / "b/annotations.json", alpaca_rows("dpo", [1.2, 1.7] * 20))
    write_rows(tmp_path / "c.jsonl", arena_rows(HOSTILE, [("A=B", "A>B")] * 3, judge=HOSTILE))
    output = tmp_path / "results.json"
    results.run(ResultsConfig(paths=(str(tmp_path),), output=str(output)), Quiet())
    return output


def test_results_have_a_section_with_figures_leads_and_the_papers_own(report, tmp_path):
    assert "Benchmarks" in dict(write_page(tmp_path / "r.html", report).rows)["sections"]
    section = (tmp_path / "r.html").read_text().partition('id="benchmarks"')[2].partition("</section>")[0]
    assert "results.json (results)" in section
    assert "holds 0: not told apart" in section
    assert re.search(r'<th scope="row">sepo</th><td>40</td><td>50\.00 \[\d+\.\d\d, \d+\.\d\d\]</td>', section)
    assert re.search(r'<th scope="row">LLaMA2-Chat-7B</th><td>5\.4 / 5</td>', section)
    assert "<script>alert" not in section
    assert "\u202e" not in section
    assert (tmp_path / "r.html").read_text().count("alpaca-eval, dpo: 40 of 805 prompts are judged") == 1


def test_a_damaged_report_is_a_mistake_of_the_world(report, tmp_path):
    found = json.loads(report.read_text())
    found.pop("files")
    for damage in ({"benchmarks": [{"benchmark": "chess"}]}, {"benchmarks": 5}):
        report.write_text(json.dumps(found | damage))
        with pytest.raises(SepoError, match=r"results\.json is (not what `sepo results` writes|no evaluation)"):
            write_page(tmp_path / "r.html", report)
