"""The hub itself is out of reach of tests: what is tested is that nothing starts without it, and nothing is lost."""

import pytest

from stages.configs import OptimizerConfig
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store.hub import push_run, refuse_closed_hub
from tests.world import run_policy


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def test_a_hub_that_does_not_answer_is_found_before_training(no_hub, world, chat_folder, tmp_path):
    with pytest.raises(SepoError, match="push_to_hub org/name: the hub does not let you in"):
        run_policy(world, chat_folder, output=tmp_path / "out", push_to_hub="org/name")
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_none_is_refused():
    with pytest.raises(SepoError, match="push_to_hub a b"):
        refuse_closed_hub("a b")


def test_a_failed_upload_says_that_the_run_is_finished(no_hub, tmp_path):
    with pytest.raises(SepoError, match=r"is finished, but was not uploaded to org/name"):
        push_run(tmp_path, OptimizerConfig(push_to_hub="org/name"), Quiet(), first=True)


def test_without_a_name_nothing_is_asked():
    refuse_closed_hub(None)
    assert push_run("nowhere", OptimizerConfig(), Quiet(), first=True) == []
