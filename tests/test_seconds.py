"""What a run cost, over all its lives."""

import json

import pytest

from stages.training.metrics import read_times
from tests.training.fits import Killed, KilledIn
from tests.world import run_oracle, run_policy


@pytest.mark.parametrize(("run", "phase", "lines"), [(run_policy, "sepo", 4), (run_oracle, "dpo", 8)])
def test_the_seconds_of_a_run_are_those_of_all_its_lives(world, chat_folder, tmp_path, run, phase, lines):
    """The first life's log is made to say that every step took 1000 seconds; of its last step there is no checkpoint."""
    options = {"output": tmp_path / "out", "max_steps": 4, "save_steps": 3, "logging_steps": 1}
    with pytest.raises(Killed):
        run(world, chat_folder, reporter=KilledIn(phase, 3), **options)
    long = [line | {"seconds": 1000.0} for line in read_times(tmp_path / "out")]
    assert len(long) == lines
    (tmp_path / "out/timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in long))
    run(world, chat_folder, **options)
    made_by = json.loads((tmp_path / "out/manifest.json").read_text())["made_by"]
    assert lines * 1000 < made_by["seconds"] < lines * 1000 + 900
    assert made_by["peak_host_memory_mb"] > 50
