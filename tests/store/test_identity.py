"""A run is the same after a release: manifests that earlier versions wrote, whose fingerprints covered every setting."""

import json
import shutil
from pathlib import Path

import pytest

from stages.configs import PolicyConfig, ScoreConfig
from stages.errors import SepoError
from stages.store.manifest import FINISHED, UNFINISHED, Input, differences, identity_of
from stages.store.run import open_stage

HERE = Path(__file__).parent
CONFIGS = {
    "score": ScoreConfig(oracle="o", dataset="d", output_dir="out", max_length=128, shard_size=16),
    "train-policy": PolicyConfig(
        model="m", scores="s", output_dir="out", batch_size=8, learning_rate=3e-3, warmup_ratio=0.1, max_length=128
    ).resolved(),
}


@pytest.fixture(params=CONFIGS)
def earlier(request, tmp_path, monkeypatch):
    """The stage, its configuration and inputs, and the manifest of the same run by an earlier version."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    shutil.copy(HERE / f"{request.param}.0.1.json", tmp_path / "out" / FINISHED)
    manifest = json.loads((tmp_path / "out" / FINISHED).read_text())
    inputs = {name: Input(name, found) for name, found in manifest["inputs"].items()}
    return request.param, CONFIGS[request.param], inputs, manifest


def test_a_run_that_an_earlier_version_finished_is_finished(earlier):
    stage, config, inputs, manifest = earlier
    with open_stage(stage, config, inputs, sound=lambda *given: True) as run:
        assert run.finished
        assert run.fingerprint == manifest["fingerprint"]


def test_a_run_that_an_earlier_version_began_goes_on_under_its_name(earlier, tmp_path):
    """What is there already says of which run it is."""
    stage, config, inputs, manifest = earlier
    (tmp_path / "out" / FINISHED).rename(tmp_path / "out" / UNFINISHED)
    with open_stage(stage, config, inputs) as run:
        assert not run.finished
        assert run.fingerprint == manifest["fingerprint"]
        run.refuse_if_lost()


def test_another_setting_or_input_is_another_run_still(earlier):
    stage, config, inputs, _ = earlier
    settings = {"max_length": 64, "an option of tomorrow": True}
    with (
        pytest.raises(
            SepoError, match="an option of tomorrow is None there and True here; max_length is 128"
        ) as caught,
        open_stage(stage, config, inputs, settings=settings),
    ):
        pass
    assert "--overwrite" in caught.value.hint
    with (
        pytest.raises(SepoError, match="the tokenizer differs"),
        open_stage(stage, config, inputs | {"tokenizer": Input("t", "sha256:other")}),
    ):
        pass


def test_a_new_option_changes_no_fingerprint_until_it_is_used():
    def of(settings, defaults):
        return identity_of("score", settings, {}, defaults)["fingerprint"]

    before = of({"max_length": 128}, {"max_length": 512})
    assert of({"max_length": 128, "new": (1,)}, {"max_length": 512, "new": (1,)}) == before
    assert of({"max_length": 128, "new": (2,)}, {"max_length": 512, "new": (1,)}) != before
    assert of({"max_length": 512}, {"max_length": 512}) != before


def test_an_option_that_an_older_manifest_does_not_name_counts_as_its_default():
    there = {"stage": "score", "format": 1, "settings": {"old": 1}, "inputs": {}}
    here = there | {"settings": {"old": 1, "new": "drop"}}
    assert differences(there, here, {"new": "drop"}) == []
    assert differences(there, here, {"new": "cut"}) == ["new is 'cut' there and 'drop' here"]
