"""A finished run that loses a file which its model does not need is still finished."""

import shutil

from stages.store.manifest import FINISHED
from tests.world import run_oracle, run_policy


def test_a_policy_is_not_trained_again_for_its_card_its_log_or_its_logps(world, chat_folder, tmp_path):
    options = {"objective": "dpo", "select": "confidence", "max_steps": 1, "save_steps": 1}
    options["reference_model"] = str(world / "oracle/oracle")
    run_policy(world, chat_folder, output=tmp_path / "p", **options)
    kept = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    kept |= {"generation_config.json", FINISHED}
    lost = {path.name for path in (tmp_path / "p").iterdir()} - kept
    assert {"README.md", "metrics.jsonl", "reference-logps.parquet", "start-logps.parquet"} <= lost
    before = (tmp_path / "p/model.safetensors").stat().st_ino
    for name in lost:
        (tmp_path / "p" / name).unlink()
    assert not run_policy(world, chat_folder, output=tmp_path / "p", **options).fresh
    assert (tmp_path / "p/model.safetensors").stat().st_ino == before
    (tmp_path / "p/model.safetensors").unlink()
    assert run_policy(world, chat_folder, output=tmp_path / "p", **options).fresh


def test_an_oracle_stays_finished_without_its_log_and_makes_its_logps_anew(world, chat_folder, tmp_path):
    """Those tell which pairs it was trained on, and spare `sepo score` their computation."""
    shutil.copytree(world / "oracle", tmp_path / "oracle")
    (tmp_path / "oracle/metrics.jsonl").unlink()
    again = {"root": world, "model": chat_folder, "output": tmp_path / "oracle"}
    assert not run_oracle(**again).fresh
    models = {path: path.stat().st_ino for path in (tmp_path / "oracle").glob("*/model.safetensors")}
    (tmp_path / "oracle/reference-logps.parquet").unlink()
    assert run_oracle(**again).fresh
    assert {path: path.stat().st_ino for path in models} == models
    logps = [folder / "oracle/reference-logps.parquet" for folder in (tmp_path, world)]
    assert logps[0].read_bytes() == logps[1].read_bytes()
    assert not run_oracle(**again).fresh
