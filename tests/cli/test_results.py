"""`sepo results` as a program."""

import json

from tests.benchmarks.folders import alpaca_rows, write_rows
from tests.report.pages import HOSTILE


def test_tables_json_and_refusals(sepo, tmp_path):
    path = write_rows(tmp_path / "annotations.json", alpaca_rows("sepo", [1 + n**2 / 400 for n in range(20)]))
    output = tmp_path / "r.json"
    code, out, err = sepo("results", path, "--output", output)
    assert (code, out.splitlines()[0]) == (0, f"results in {output}")
    assert "AlpacaEval 2, judged by gpt, against base (95% interval)" in out
    assert f"| sepo | 20 | {100 * sum(n**2 for n in range(20)) / 8000:.2f} [" in out
    assert "warning: alpaca-eval, sepo: 20 of 805 prompts are judged" in err
    assert sepo("results", path, "--output", output)[1].startswith("nothing to do: results in")
    written = json.loads(output.read_text())
    code, out, _ = sepo("results", path, "--json")
    assert (code, json.loads(out)["benchmarks"]) == (0, written["benchmarks"])
    code, out, err = sepo("results", path, "--output", output, "--seed", 1)
    assert (code, out) == (1, "")
    assert err.splitlines()[-2:] == [
        f"error: {output} holds another evaluation: seed is 42 there and 1 here",
        "hint:  choose another --output, or replace it with --overwrite",
    ]
    assert sepo("results", path, "--output", output, "--seed", 1, "--overwrite")[0] == 0
    assert json.loads(output.read_text())["benchmarks"] != written["benchmarks"]
    code, _, err = sepo("results")
    assert code == 2
    assert "needs PATH" in err


def test_names_of_others_do_nothing_to_the_terminal(sepo, tmp_path):
    for name in ("a", "b"):
        rows = alpaca_rows(name + HOSTILE, [1.0, 2.0] * 20, judge=HOSTILE)
        write_rows(tmp_path / name / "annotations.json", rows)
    code, out, err = sepo("results", tmp_path)
    assert code == 0
    assert {letter for letter in out + err if not letter.isprintable()} == {"\n"}
