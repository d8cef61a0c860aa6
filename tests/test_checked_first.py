"""What the training stages look at before the first step, and what they hold in memory until then."""

import gc

import pytest
import torch
from transformers import PreTrainedModel

from stages import train_oracle
from stages.configs import CheckConfig, OracleConfig, PolicyConfig
from stages.devices.processes import join_processes
from stages.errors import SepoError
from stages.models.folders import usable_length
from stages.reporting import Quiet
from tests.conftest import Listens, tiny_gpt2, tiny_llama, write_lines
from tests.world import run_oracle, run_policy, run_score


def folder_of(path, model, tokenizer):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def long_rows():
    """Two short pairs, then one with more tokens than the small model has positions."""
    return [
        {"prompt": f"say {number}", "chosen": "a fox" + " jumps over the lazy dog" * many, "rejected": "no fox"}
        for number, many in enumerate((1, 1, 20))
    ]


def small_gpt2(tokenizer):
    model = tiny_gpt2(len(tokenizer))
    model.config.n_positions = 64
    model.transformer.wpe = torch.nn.Embedding(64, 32)
    return model


def test_rows_beyond_the_models_positions_are_dropped_and_counted(tmp_path, chatml):
    """Learned positions end at 64: without a limit the embedding fails in the middle of training."""
    write_lines(tmp_path / "pairs.jsonl", long_rows())
    model = folder_of(tmp_path / "model", small_gpt2(chatml), chatml)
    ears = Listens()
    common = {"max_length": 2048, "batch_size": 2}
    run_oracle(tmp_path, model, ears, eval_fraction=0.0, **common)
    assert "max_length 2,048 is taken as 64: the model has no more positions" in ears.said
    run_score(tmp_path, max_length=2048)
    ears = Listens()
    run_policy(tmp_path, model, ears, **common)
    assert "max_length 2,048 is taken as 64: the model has no more positions" in ears.said
    assert any(text.startswith("2 pairs; selected") for text in ears.said)


def test_usable_length(tmp_path, chatml):
    folders = [folder_of(tmp_path / str(n), m, chatml) for n, m in enumerate((small_gpt2(chatml), tiny_llama(400)))]
    ask = {"trust_remote_code": False, "reporter": Quiet()}
    assert usable_length(folders, 2048, **ask) == 64
    assert usable_length(folders[1:], 2048, **ask) == 256
    assert usable_length(folders, 50, **ask) == 50


def test_an_oracle_without_room_for_its_tokenizer(tmp_path, chatml):
    write_lines(tmp_path / "pairs.jsonl", long_rows())
    model = folder_of(tmp_path / "model", tiny_llama(100), chatml)
    for epochs in (0, 1):
        with pytest.raises(SepoError, match=r"the pairs hold token id \d+, but .* has embeddings for \d+"):
            run_oracle(tmp_path, model, eval_fraction=0.0, sft_epochs=epochs, overwrite=True)


@pytest.mark.parametrize("epochs", [0, 1])
def test_one_model_is_loaded_for_the_reference(tmp_path, chat_folder, monkeypatch, epochs):
    """A second one beside it would need twice the memory, and a quantised run the whole model's."""
    write_lines(tmp_path / "pairs.jsonl", long_rows()[:2])
    alive = []

    def counted(model, *args, **options):
        gc.collect()
        alive.append(sum(isinstance(each, PreTrainedModel) and each.get_output_embeddings() is not None
                         for each in gc.get_objects() if type(each).__name__ == "LlamaForCausalLM"))  # fmt: skip
        return make_trainee(model, *args, **options)

    make_trainee = train_oracle.make_trainee
    before = sum(type(each).__name__ == "LlamaForCausalLM" for each in gc.get_objects())
    monkeypatch.setattr(train_oracle, "make_trainee", counted)
    run_oracle(tmp_path, chat_folder, eval_fraction=0.0, sft_epochs=epochs)
    assert alive[0] - before == 1


def test_the_environment_does_not_divide_gradients(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert join_processes().gradient_accumulation_steps == 1


@pytest.mark.parametrize(
    ("kind", "options", "fault"),
    [
        (CheckConfig, {"scores": "s", "trust_remote_code": True}, "trust_remote_code needs model"),
        (OracleConfig, {"hub_private": True}, "hub_private needs push_to_hub"),
        (PolicyConfig, {"hub_private": True}, "hub_private needs push_to_hub"),
        (OracleConfig, {"sft_dataset": "d", "sft_epochs": 0}, "sft_dataset needs sft_epochs"),
    ],
)
def test_options_without_what_they_are_about(kind, options, fault):
    with pytest.raises(SepoError, match=fault):
        kind(**options)


def test_what_needs_too_much_memory_is_named(tmp_path, chat_folder, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    write_lines(tmp_path / "pairs.jsonl", long_rows()[:2])
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", full)
        with pytest.raises(SepoError, match="out of memory in the optimiser's step: CUDA") as caught:
            run_oracle(tmp_path, chat_folder, eval_fraction=0.0)
        assert "--optim adamw-8bit" in caught.value.hint
    with monkeypatch.context() as patched:
        patched.setattr("stages.logprobs.logps.pair_by_pair", full)
        with pytest.raises(SepoError, match=r"out of memory in a micro-batch of \d+ pairs with \d+ tokens") as caught:
            run_oracle(tmp_path, chat_folder, eval_fraction=0.0, sft_epochs=0, output="read")
        assert "--gradient-checkpointing" not in caught.value.hint
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "to", full)
        with pytest.raises(SepoError, match=r"out of memory in moving a model of [\d,]+ parameters to cpu"):
            run_oracle(tmp_path, chat_folder, eval_fraction=0.0, output="moved")
