"""Of several processes the one is named that all others wait for, once, and none that is only slow."""

import json
import os

import pytest
import torch

from stages.training.pulse import END, Beat, Watch
from tests import lives

PATIENCE = 10.0


def beats(number, *orders, **how):
    return [Beat(number, order, f"in place {order}", host="h", pid=7, **how) for order in orders]


def found(*looks, watch=None):
    """What is told at looks of (time, beats)."""
    watch = watch or Watch(PATIENCE)
    return [stall for time, said in looks if (stall := watch.look(said, time))]


def moved():
    """A watch that has seen two processes move within a second."""
    watch = Watch(PATIENCE)
    assert not found(*((float(second), beats(second, (0, second), (0, second))) for second in range(3)), watch=watch)
    return watch


def test_the_process_that_is_behind_all_others_is_named_once():
    looks = [(float(second), beats(second, (0, 9), (0, 2))) for second in range(3, 40)]
    [stall] = found(*looks, watch=moved())
    assert (stall.behind, stall.silent, stall.seconds) == ([1], [], PATIENCE)
    said = stall.described(5)
    assert said.startswith("nothing has moved for 10 s: process 1 (pid 7 on h) holds up all others in place (0, 2); ")
    assert "`py-spy dump --pid 7`" in said
    assert said.endswith("and the same command goes on after step 5, the last checkpoint")
    assert stall.described(0).endswith("there is no checkpoint")


def test_a_process_that_says_nothing_any_more_is_told_from_one_that_waits():
    looks = [(float(second), [*beats(second, (0, 3)), *beats(3, (0, 3))]) for second in range(3, 40)]
    [stall] = found(*looks, watch=moved())
    assert (stall.behind, stall.silent) == ([], [1])
    assert "process 1 (pid 7 on h) no longer answers" in stall.described(0)
    [stall] = found(*((float(second), beats(second, (0, 3), (0, 3))) for second in range(3, 40)), watch=moved())
    assert (stall.behind, stall.silent) == ([], [])
    assert "all 2 processes are in place (0, 3), and what they exchange does not arrive" in stall.described(0)


def test_a_slow_step_one_that_works_alone_and_one_that_has_left_are_no_stall():
    def still(until, said=((0, 9), (0, 2)), **how):
        return [(float(second), beats(second, *said, **how)) for second in range(3, until)]

    assert not found(*still(40, alone=True), watch=moved())
    # The first micro-batch of all may take five times as long; so may any, once one has.
    assert not found(*still(3 + 50))
    assert len(found(*still(3 + 52))) == 1
    assert len(found(*still(3 + 12, begun=True))) == 1
    slow = moved()
    assert not found(*still(3 + 9), (12.0, beats(12, (0, 9), (0, 3))), watch=slow)
    looks = [(float(second), beats(second, (0, 9), (0, 3))) for second in range(13, 100)]
    assert [stall.seconds for stall in found(*looks, watch=slow)] == [30.0]
    left = [(float(second), [*beats(second, (0, 9)), *beats(3, END)]) for second in range(3, 40)]
    assert [stall.silent for stall in found(*left, watch=moved())] == [[]]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes of `tests.training.stalls` leave, and they themselves."""
    folder = tmp_path_factory.mktemp("two")
    runs = lives.run_module("tests.training.stalls", folder, folder=folder, processes=2)
    ends = [run.end() for run in runs]
    assert [code for code, _ in ends] == [0, 0], ends
    return folder, runs


def test_of_two_real_processes_the_one_that_hangs_is_named(two):
    """It hangs in the second step until that is said; in the run before nobody does."""
    folder, runs = two
    assert not (folder / "objective.json").exists()
    [warning] = json.loads((folder / "hangs.json").read_text())
    hung = (
        f"process 1 (pid {runs[1].pid} on {os.uname().nodename}) holds up all others in step 2, gradients, micro-batch"
    )
    assert hung in warning
    assert "goes on after step 1, the last checkpoint" in warning


def test_a_step_that_one_of_two_gives_up_is_none_of_both(two):
    """It is asked in the second step, in its second micro-batch of all; the other one still waits for its gradients."""
    found = torch.load(two[0] / "found.pt")
    assert found["left"] == ["test-00000001"]
    torch.testing.assert_close(found["weights"]["asked"], found["weights"]["objective"], atol=1e-5, rtol=1e-4)
