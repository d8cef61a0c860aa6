"""The official tools take our files and judge them, by the very commands that we print; the judge is a small server's."""

import csv
import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from math import log
from pathlib import Path

import pytest
import yaml

from stages import results
from stages.benchmarks.judges import URL
from stages.benchmarks.registry import BENCHMARKS
from stages.configs import ResultsConfig
from stages.reporting import Quiet
from tests.benchmarks.judge import carry_out, judging
from tests.benchmarks.rows import MADE_UP, answered, placed, real_rows


def files_of(folder, name, text, rows=None):
    benchmark = BENCHMARKS[name]
    questions = list(benchmark.questions(placed(rows or MADE_UP[name])))
    benchmark.write_files(folder, "policy", answered(questions, text))
    return benchmark.next_steps(folder, ["policy"])


def figures(folder):
    """What `sepo results` makes of what the tools wrote."""
    return results.run(ResultsConfig(paths=(str(folder),), json=True), Quiet()).json["benchmarks"]


def test_alpaca_eval_judges_ours(tmp_path):
    folder = tmp_path / "a folder"
    steps = files_of(folder, "alpaca-eval", lambda question, turn: "better" if question.number else "")
    assert "--fn_metric get_winrate" in steps.text

    def prefers_ours(request):
        # The first model that is shown is m; which one is ours the tool decides.
        first, _ = re.findall('"output": """(.*?)"""', request["messages"][-1]["content"])
        return {"m": log(0.9), "M": log(0.1)} if first == "better" else {"m": log(0.1), "M": log(0.9)}

    with judging(prefers_ours) as (url, asked):
        carry_out(steps, folder, url, ["alpaca_eval"])
    assert {(path, request["model"]) for path, request in asked} == {("/v1/chat/completions", "judge")}
    assert len(asked) == 3
    [board] = csv.DictReader((folder / "alpaca_eval/results/policy/leaderboard.csv").read_text().splitlines())
    # 0.1, 0.9, 0.9; characters: 0, 6, 6.
    assert float(board["win_rate"]) == pytest.approx(100 * 1.9 / 3)
    assert (board[""], board["n_total"], board["avg_length"]) == ("policy", "3", "4")
    judged = json.loads((folder / "alpaca_eval/results/policy/annotations.json").read_text())
    assert [row["instruction"] for row in judged] == [row["instruction"] for row in MADE_UP["alpaca-eval"]]
    assert [(row["output_1"], row["output_2"]) for row in judged[:2]] == [("one!", ""), ("two!", "better")]
    [found] = figures(folder)
    assert (found["judge"], found["against"]) == ("judge", judged[0]["generator_1"])
    assert found["models"]["policy"]["figures"]["win_rate"]["value"] == pytest.approx(float(board["win_rate"]))


def test_mt_bench_judges_ours(tmp_path, monkeypatch):
    from mtbench_evaluator import entrypoint

    folder = tmp_path / "a folder"
    steps = files_of(folder, "mt-bench", lambda question, turn: f"answer to {question.question_id} {turn}")
    tool = Path(entrypoint.__file__).parent / "fastchat"
    monkeypatch.syspath_prepend(tool)

    def in_this_process(command, cwd):
        """Instead of a new Python, whose import of torch would take most of the test."""
        assert (command[:2], cwd) == (["python", "-m"], str(tool))
        monkeypatch.setattr(sys, "argv", command[2:])
        runpy.run_module(command[2], run_name="__main__")
        return 0

    monkeypatch.setattr(entrypoint, "run_command", in_this_process)
    with judging(lambda request: f"Good. [[{len(request['messages']) + 5}]]") as (url, asked):
        for line in steps.text.replace(URL, url).splitlines():
            if line.startswith("mkdir"):
                subprocess.run(line, shell=True, check=True)
            elif line.startswith("mtbench-evaluator"):
                monkeypatch.setattr(sys, "argv", shlex.split(line))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    entrypoint.main()
    # Once to see whether it is there.
    assert len(asked) == 1 + 4
    assert {(path, request["model"]) for path, request in asked} == {("/v1/chat/completions", "judge")}
    shown = [request["messages"][-1]["content"] for _, request in asked]
    assert any("answer to 111 0" in prompt and "answer to 111 1" in prompt for prompt in shown)
    judged = (folder / "mt_bench/mtbench/policy/judgements/judge_single.jsonl").read_text().splitlines()
    rows = sorted((row["question_id"], row["turn"], row["model"], row["score"]) for row in map(json.loads, judged))
    assert rows == [(question, turn, "policy", 7) for question in (81, 111) for turn in (1, 2)]
    assert json.loads((folder / "mt_bench/mtbench/policy/judge-result.json").read_text())["total"] == 7
    [found] = figures(folder)
    assert found["models"]["policy"]["figures"]["average"]["value"] == 7


@pytest.mark.parametrize(("name", "category"), [("v0.1", "arena-hard-v0.1"), ("v2.0", "hard_prompt")])
def test_arena_hards_settings_are_the_official_ones_with_ours(tmp_path, name, category):
    bench = f"arena-hard-{name}"
    rows = [{"uid": "u", "category": category, "prompt": "Why?"}]
    steps = files_of(tmp_path, "arena-hard", lambda *_: "So.", rows)
    # Their published shape; the one of v0.1 ends without a line end.
    official = f"judge_model: gpt-4.1\ntemperature: 1.0\nbench_name: {bench}\nreference: null\nmodel_list:\n  - o1"
    (tmp_path / "config").mkdir()
    (tmp_path / f"config/{bench}.yaml").write_text(official)
    (tmp_path / "config/api_config.yaml").write_text("gpt-4.1:\n    endpoints: null")
    for line in steps.text.splitlines():
        if line.startswith("cat "):
            subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    settings, servers = (
        yaml.safe_load((tmp_path / f"config/{file}.yaml").read_text()) for file in ("sepo", "sepo-api")
    )
    assert settings == {
        "judge_model": "judge", "temperature": 0.0, "bench_name": bench, "reference": None, "model_list": ["policy"],
        "max_tokens": 4096,
    }  # fmt: skip
    assert {*servers} == {"gpt-4.1", "judge"}
    assert servers["judge"] == {
        "model": "judge", "endpoints": [{"api_base": URL, "api_key": "-"}], "api_type": "openai", "parallel": 8,
    }  # fmt: skip
    wanted = re.findall(r"model_answer/([\w.-]+)\.jsonl", steps.text)
    assert wanted == (["gpt-4-0314"] if name == "v0.1" else ["gemini-2.0-flash-001", "o3-mini-2025-01-31"])


@pytest.mark.parametrize("name", [*BENCHMARKS])
def test_next_steps_are_a_script(tmp_path, name):
    folder = tmp_path / "it's a folder"
    steps = files_of(folder, name, lambda *_: "Yes.")
    assert subprocess.run(["bash", "-n"], input=steps.text, text=True, check=False).returncode == 0
    assert all((folder / file).exists() for file in steps.files)


def test_the_script_of_ifeval_needs_no_other_checkout_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = files_of(Path("answers"), "ifeval", lambda *_: "Yes.")
    commands = [line for line in steps.text.splitlines() if not line.startswith("#")]
    assert commands == [f"sepo results {tmp_path / 'answers'}"]


def test_arena_hards_script_may_run_again_and_never_in_another_folder(tmp_path):
    steps = files_of(tmp_path / "answers", "arena-hard", lambda *_: "So.")
    [fetch] = [line for line in steps.text.splitlines() if "git clone" in line]
    tools = {"git": "mkdir $(basename $2) && echo cloned", "pip": "basename $PWD"}
    shell = "\n".join(f"{name}() {{ {body}; }}" for name, body in tools.items())
    for said in ("cloned\narena-hard-auto\n", "arena-hard-auto\n"):
        done = subprocess.run(
            ["bash", "-c", f"{shell}\n{fetch}"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout == said
    offline = "git() { false; }\npip() { echo installed; }"
    (tmp_path / "elsewhere").mkdir()
    failed = subprocess.run(
        ["bash", "-c", f"{offline}\n{fetch}"], cwd=tmp_path / "elsewhere", capture_output=True, check=False
    )
    assert (failed.returncode, failed.stdout) == (1, b"")


def test_length_controlled_win_rates_need_all_prompts(tmp_path):
    steps = files_of(tmp_path, "alpaca-eval", lambda *_: "Yes.", real_rows("alpaca-eval"))
    assert "get_winrate" not in steps.text
