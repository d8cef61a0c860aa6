"""A model of the hub at one of its revisions; the hub is what its cache on the disk holds."""

import shutil

import pytest
import torch

from stages import cut_model, train_policy
from stages.configs import CutModelConfig, OptimizerConfig, PolicyConfig
from stages.errors import SepoError
from stages.models.adapters import base_of
from stages.models.folders import load_model, model_hash, resolve_model
from stages.reporting import Quiet
from tests.conftest import tiny_llama
from tests.world import manifest


@pytest.fixture
def hub(tmp_path, monkeypatch, chat_folder, chatml):
    """org/tiny, whose branch main is `chat_folder` and whose tag v2 is another model."""
    repository = tmp_path / "hub/models--org--tiny"
    for number, name in enumerate(("main", "v2"), start=1):
        commit = str(number) * 40
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(chat_folder, repository / "snapshots" / commit)
    tiny_llama(len(chatml), seed=5, tie_word_embeddings=True).save_pretrained(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository / "snapshots"


def test_a_revision_is_another_model(hub, tmp_path):
    main, other = hub / ("1" * 40), hub / ("2" * 40)
    assert resolve_model("org/tiny", Quiet()) == main
    assert resolve_model("org/tiny@v2", Quiet()) == resolve_model(f"org/tiny@{'2' * 40}", Quiet()) == other
    for name, revision in (("main", None), ("v2", "v2")):
        config = CutModelConfig(model="org/tiny", model_revision=revision, layers=1, output_dir=str(tmp_path / name))
        cut_model.run(config, Quiet())
    found, expected = (load_model(each, trust_remote_code=False) for each in (tmp_path / "v2", other))
    assert torch.equal(found.get_input_embeddings().weight, expected.get_input_embeddings().weight)
    assert model_hash(tmp_path / "v2") != model_hash(tmp_path / "main")


def test_an_adapter_remembers_the_revision_of_its_base(hub, world, tmp_path):
    names = {"model": "org/tiny", "scores": str(world / "scores"), "output_dir": str(tmp_path / "policy")}
    train_policy.run(PolicyConfig(**names, model_revision="v2", lora_rank=2, max_steps=1), Quiet())
    assert manifest(tmp_path / "policy")["input_names"]["model"] == "org/tiny@v2"
    assert base_of(tmp_path / "policy") == "org/tiny@v2"
    from peft import PeftConfig

    settings = PeftConfig.from_pretrained(str(tmp_path / "policy"))
    assert (settings.base_model_name_or_path, settings.revision) == ("org/tiny", "v2")


def test_a_folder_has_no_revision(chat_folder):
    with pytest.raises(SepoError, match="is a folder here, which has no revision v2"):
        resolve_model(f"{chat_folder}@v2", Quiet())
    with pytest.raises(SepoError, match="model_revision must be the name of a branch or tag, or a commit, got 'a b'"):
        OptimizerConfig(model_revision="a b")
