"""What `sepo evaluate` measured once is not measured again, and what it wrote is not lost."""

import json
import multiprocessing
import signal

import pytest

from stages import evaluate
from stages.configs import EvaluateConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from tests.evaluation.conftest import FAST, Ear


def test_nothing_is_measured_twice(run, monkeypatch, tmp_path):
    """The reference's log-probs serve both models, and what is kept serves the next evaluation."""
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    ear = Ear()
    run(ear)
    measured = [task for task in ear.tasks if not task.startswith("read")]
    assert sorted(measured) == sorted(
        [
            f"{name}: {what}"
            for name in ("policy", "oracle")
            for what in ("log-probs", "KL, pairs", "KL, samples", "samples")
        ]
        + ["reference: log-probs", "reference: samples"]
    )
    ear = Ear()
    run(ear, seed=7)
    assert {task.split(": ")[1] for task in ear.tasks} == {"samples", "KL, samples"}


def test_nothing_is_measured_twice_without_a_cache(run, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "file" / "cache"))
    ear = Ear()
    run(ear, samples=0)
    assert ear.tasks.count("reference: log-probs") == 1
    assert any("is not cached" in text for text in ear.said)


def test_a_killed_run_goes_on(run, world, held_out, monkeypatch, tmp_path):
    """Killed while it samples from the second of three models; the next life begins there, to the same result."""
    whole = run()
    (tmp_path / "out.json").unlink()
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    models = (f"policy={world / 'policy'}", f"oracle={world / 'oracle/oracle'}")
    config = EvaluateConfig(
        models=models,
        dataset=str(held_out),
        reference_model=str(world / "oracle/reference"),
        output=str(tmp_path / "out.json"),
        **FAST,
    )
    life = multiprocessing.get_context("fork").Process(target=evaluate.run, args=(config, Ear("policy: samples")))
    life.start()
    life.join()
    assert life.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out.json").exists()
    ear = Ear()
    report = run(ear)
    assert not [task for task in ear.tasks if task.startswith("reference")]
    assert "policy: log-probs" not in ear.tasks
    assert {"policy: samples", "oracle: log-probs", "oracle: samples"} <= set(ear.tasks)
    assert {name: model["figures"] for name, model in report["models"].items()} == {
        name: model["figures"] for name, model in whole["models"].items()
    }


def test_a_finished_evaluation_is_shown_again(run, world, held_out, tmp_path):
    first = run(samples=0)
    config = EvaluateConfig(
        models=(f"policy={world / 'policy'}", f"oracle={world / 'oracle/oracle'}"),
        dataset=str(held_out),
        reference_model=str(world / "oracle/reference"),
        output=str(tmp_path / "out.json"),
        **FAST | {"samples": 0},
    )
    ear = Ear()
    summary = evaluate.run(config, ear)
    assert not summary.fresh
    assert not ear.tasks
    assert dict(summary.rows)["oracle vs reference"] == first["comparisons"][1]["sentences"][0]
    assert next(table.title.split(":")[0] for table in summary.tables) == "Chosen response preferred"
    with pytest.raises(SepoError, match="holds another evaluation: seed is 42 there and 1 here") as caught:
        evaluate.run(EvaluateConfig(**vars(config) | {"seed": 1}), Quiet())
    assert "--overwrite" in caught.value.hint


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b""), lambda file: file.unlink()])
def test_a_table_that_is_damaged_is_written_again(run, tmp_path, damage):
    """Though the report is that which is asked for."""
    run(overwrite=False)
    for name in ("pairs", "samples"):
        file = tmp_path / f"out.{name}.parquet"
        whole = file.read_bytes()
        damage(file)
        ear = Ear()
        run(ear, overwrite=False)
        assert file.read_bytes() == whole
        assert not [task for task in ear.tasks if "log-probs" in task]


def test_a_table_of_the_evaluation_before_does_not_stay(run, tmp_path):
    """What no report lists is not the evaluation's, and stays: no table takes its place."""
    (tmp_path / "out.samples.parquet").write_text("a thesis")
    run(samples=0)
    with pytest.raises(SepoError, match=r"out\.samples\.parquet is there already, and is not of this evaluation"):
        run()
    assert (tmp_path / "out.samples.parquet").read_text() == "a thesis"
    (tmp_path / "out.samples.parquet").unlink()
    assert set(run()["files"]) == {"out.pairs.parquet", "out.samples.parquet"}
    assert set(run(samples=0)["files"]) == {"out.pairs.parquet"}
    assert {file.name for file in tmp_path.iterdir()} == {"out.json", "out.pairs.parquet"}


def _without_figures(report):
    del report["models"]["policy"]["figures"]


def _with_a_list_of_models(report):
    report["models"] = list(report["models"])


def _without_warnings(report):
    report["warnings"] = None


@pytest.mark.parametrize("damage", [_without_figures, _with_a_list_of_models, _without_warnings])
def test_a_report_that_is_damaged_is_one_error(run, tmp_path, damage):
    report = run(samples=0)
    damage(report)
    (tmp_path / "out.json").write_text(json.dumps(report))
    with pytest.raises(SepoError, match=r"out\.json is damaged: its report cannot be read") as caught:
        run(samples=0)
    assert "remove it" in caught.value.hint
    (tmp_path / "out.json").unlink()
    assert "figures" in run(samples=0)["models"]["policy"]


def test_what_is_no_evaluation_is_never_replaced(run, tmp_path):
    (tmp_path / "out.json").write_text('{"a thesis": 1}')
    with pytest.raises(SepoError, match=r"out\.json is there already, and is no evaluation"):
        run()
    assert (tmp_path / "out.json").read_text() == '{"a thesis": 1}'
