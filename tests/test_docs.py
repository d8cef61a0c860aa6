"""What the documentation shows can be run: every command line is parsed by the real parser, every link leads somewhere."""

import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import typer
import yaml

from sepo_cli.main import app
from tests.method.test_objectives import CASES, batch_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SCRIPTS = sorted([*ROOT.glob("examples/**/*.sh"), *ROOT.glob("examples/*.slurm")])
PROGRAM = typer.main.get_command(app)


def blocks(page):
    return re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(text):
    """The calls of sepo in a script, without what stands around them."""
    # A script's variable, where the parser wants a number.
    text = re.sub(r"(--(?:seed|samples|max-new-tokens)) \$\w+", r"\1 2", text)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        found = re.search(
            r"(?:^|\s|/)(?:sepo|-m sepo_cli)\s+((?:[a-z]+-?)+\s.*|--.*)$", line.partition("#")[0].lstrip("$ ")
        )
        if found and "COMMAND" not in line:
            yield shlex.split(found[1].removesuffix("..."), comments=True)


CALLS = [(page.name, call) for page in PAGES for block in blocks(page) for call in commands(block)]
CALLS += [(script.name, call) for script in SCRIPTS for call in commands(script.read_text())]


@pytest.mark.parametrize(
    ("where", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else " ".join(value[:2])
)
def test_every_command_line_is_one_that_the_program_takes(where, call):
    name, *arguments = call
    if not name.startswith("-"):
        PROGRAM.commands[name].make_context(name, arguments)


def test_there_is_something_to_parse():
    assert len(CALLS) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_examples_are_sound_shell(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_accelerate_takes_the_example_configurations():
    from accelerate.commands.config.config_args import load_config_from_file

    for file in sorted(ROOT.glob("examples/accelerate_*.yaml")):
        loaded = load_config_from_file(str(file))
        assert loaded.distributed_type.value == yaml.safe_load(file.read_text())["distributed_type"]


STUBS = {
    "scontrol": 'case "$1" in show) printf "first\\nsecond\\n";; *) echo "$@" >> "$SEEN/queued";; esac',
    "srun": """trap "exit 137" TERM; shift
        SLURM_NODEID=1 bash -c 'echo $$ > "$SEEN/7"; exec "$@"' task "$@" & wait $!""",
    "scancel": '[ "$1" = --signal=TERM ]; kill -TERM "$(cat "$SEEN/$2")"',
    "accelerate": 'shift; printf "%s\\n" "$@" > "$SEEN/launched"; trap "exit 1" TERM; kill -TERM "$LAUNCHED_BY"; sleep 9 & wait',
}
"""what a cluster would answer, whose srun ends its tasks at once, and a launcher that its job is told to stop"""


def test_the_training_job_starts_every_node_and_is_queued_again_when_its_time_is_over(tmp_path):
    from accelerate.commands.launch import launch_command_parser

    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    here = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path)}
    script = f"export LAUNCHED_BY=$$; . {ROOT / 'examples/train.slurm'}"
    done = subprocess.run(["bash", "-c", script], env=os.environ | slurm | here, check=False, timeout=60)
    assert done.returncode == 1
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
    launch = launch_command_parser().parse_args((tmp_path / "launched").read_text().split())
    assert (launch.num_machines, launch.num_processes, launch.machine_rank) == (2, 16, 1)
    assert (launch.main_process_ip, launch.main_process_port, launch.module) == ("first", 20007, True)
    assert launch.training_script == "sepo_cli"


def test_a_scorer_of_ones_own_makes_what_training_reads(world, tmp_path):
    """The example as it stands, on the tests' own model and pairs."""
    from stages.check import check_scores
    from stages.configs import PolicyConfig
    from stages.reporting import Quiet
    from stages.store.place import place_of
    from stages.train_policy import run

    dataset = tmp_path / "pairs.jsonl"
    dataset.write_text('{"prompt": "hello there", "chosen": "the quick fox", "rejected": "a dog"}\n' * 4)
    main = runpy.run_path(str(ROOT / "examples/own_scorer.py"))["main"]
    main(str(world / "oracle/reference"), str(dataset), str(tmp_path / "scores"))
    assert check_scores(place_of(tmp_path / "scores"), None, Quiet()).failure is None
    config = PolicyConfig(
        model=str(world / "oracle/reference"),
        scores=str(tmp_path / "scores"),
        output_dir=str(tmp_path / "policy"),
        batch_size=2,
        report_to="none",
    )
    run(config, Quiet())
    assert (tmp_path / "policy/manifest.json").exists()


def test_an_objective_of_ones_own_is_the_loss_it_says():
    from stages.registry import OBJECTIVES

    space = runpy.run_path(str(ROOT / "examples/own_objective.py"))
    logps, batch = batch_of(*CASES["wrong"])
    ours = space["own_objective"](logps, batch, gamma=2.0, margin=0.5)
    sepos = OBJECTIVES["sepo"].load()(logps, batch, gamma=2.0, margin=0.5)
    torch.testing.assert_close(ours.loss_B, sepos.loss_B)


def test_the_longer_response_becomes_the_chosen_one():
    by_length = runpy.run_path(str(ROOT / "examples/longer_is_better.py"))["by_length"]
    pair = {"prompt": "q", "chosen": "a b", "rejected": "a b c"}
    assert by_length(pair) == {"prompt": "q", "chosen": "a b c", "rejected": "a b"}
    assert by_length(by_length(pair)) == by_length(pair)
