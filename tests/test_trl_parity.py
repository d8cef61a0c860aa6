"""Ten steps beside TRL: the same pairs in the same order give the same losses and the same weights.

Runs where TRL is installed (``pip install 'sepo[bench]'``).
"""

from functools import partial

import numpy as np
import pytest
import torch

from stages.configs import OptimizerConfig
from stages.logprobs.batches import whole
from stages.logprobs.logps import response_logps
from stages.logprobs.paths import find_paths
from stages.models.folders import load_model, load_tokenizer, save_model
from stages.registry import OBJECTIVES
from stages.reporting import Quiet
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.tokens.encode import Encoder
from stages.training.loop import fit
from stages.training.metrics import read_metrics
from stages.training.schedule import order_of_epoch
from stages.types import Batch
from tests.conftest import REAL, byte_level_tokenizer, tiny_llama, word_rows

cpo, dpo, ipo, orpo, sepo, slic = (OBJECTIVES[name].load() for name in ("cpo", "dpo", "ipo", "orpo", "sepo", "slic"))

trl = pytest.importorskip("trl")

# As CHATML, without the newline behind a turn: TRL trains on it, and sepo does not.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PAIRS, STEP = 40, 4
RATES = {"learning_rate": 5e-3, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "weight_decay": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    tokenizer = byte_level_tokenizer(TEMPLATE, eos_token="<|im_end|>", pad_token="<|im_end|>")
    model = tiny_llama(len(tokenizer))
    # A near-uniform start, as a trained model's gradients are small too.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    save_model(model, tokenizer, folder)
    return folder


def rows():
    """Real pairs where they are at hand, as TRL wants them: turns."""
    if not (REAL / "hh_harmless.jsonl.gz").exists():
        return [
            {
                "prompt": [turn("user", row["prompt"])],
                **{side: [turn("assistant", row[side])] for side in ("chosen", "rejected")},
            }
            for row in word_rows(PAIRS)
        ]
    from stages.data.layouts import read_pairs

    pairs = [pair for pair in read_pairs(str(REAL / "hh_harmless.jsonl.gz")) if hasattr(pair, "prompt")]
    short = [
        pair
        for pair in pairs
        if len(pair.prompt) == 1 and len(pair.prompt[0]["content"] + pair.chosen + pair.rejected) < 180
    ]
    return [
        {
            "prompt": pair.prompt,
            "chosen": [turn("assistant", pair.chosen)],
            "rejected": [turn("assistant", pair.rejected)],
        }
        for pair in short[:PAIRS]
    ]


def turn(role, content):
    return {"role": role, "content": content}


def ours(folder, tmp_path, objective, *, with_logps):
    import json

    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    encoder = Encoder(load_tokenizer(folder, trust_remote_code=False))
    pairs, _ = load_pairs(str(path), encoder, LengthLimit(400), columns={}, reporter=Quiet())
    assert len(pairs) == PAIRS
    model = load_model(folder, trust_remote_code=False)
    examples = [whole(pair) for pair in pairs]
    if with_logps:
        cpu = torch.device("cpu")
        [logps] = response_logps([find_paths(model, Quiet())], list(pairs), max_tokens=4096, device=cpu, task=Quiet())
        examples = list(map(whole, pairs, logps))
    config = OptimizerConfig(batch_size=STEP, warmup_ratio=0.1, max_tokens_per_device=500, save_steps=0, **RATES)
    fit(model, examples, objective, config, phase="t", folder=tmp_path, reporter=Quiet())
    return [record["loss"] for record in read_metrics(tmp_path)], model


def theirs(folder, tmp_path, trainer_class, config_class, **options):
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class InOrder(trainer_class):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    given = rows()
    dataset = Dataset.from_list([given[place] for place in order_of_epoch(PAIRS, 0, 42)])
    settings = {
        "output_dir": str(tmp_path / "trl"), "per_device_train_batch_size": STEP, "num_train_epochs": 1, "warmup_steps": 1,
        "adam_beta1": 0.9, "adam_beta2": 0.95, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1,
        "report_to": "none", "max_length": 400, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
        "optim": "adamw_torch_fused",
    }  # fmt: skip
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=config_class(**{**settings, **RATES, **options}),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer.model


def their_start(folder):
    model = load_model(folder, trust_remote_code=False)
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def assert_equal(mine, other, folder):
    (our_losses, our_model), (their_losses, their_model) = mine, other
    assert len(our_losses) == len(their_losses) == PAIRS // STEP
    np.testing.assert_allclose(our_losses, their_losses, atol=2e-4)
    one, two = (
        torch.cat([each.detach().flatten() for each in model.parameters()]) for model in (our_model, their_model)
    )
    off = (one - two).abs() > 5e-5
    # Adam makes a whole step of a gradient that is nothing but rounding; a weight in ten thousand has one.
    assert off.float().mean() < 1e-4
    assert (one - their_start(folder)).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_dpo_is_trls(folder, tmp_path):
    mine = ours(folder, tmp_path, partial(dpo, beta=0.3), with_logps=True)
    assert_equal(mine, theirs(folder, tmp_path, trl.DPOTrainer, trl.DPOConfig, beta=0.3), folder)


@pytest.mark.filterwarnings("ignore")
def test_simpo_is_trls(folder, tmp_path):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    mine = ours(folder, tmp_path, partial(sepo, gamma=2.1, margin=0.5), with_logps=False)
    simpo = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.1, "simpo_gamma": 0.5}
    assert_equal(mine, theirs(folder, tmp_path, CPOTrainer, CPOConfig, **simpo), folder)


@pytest.mark.filterwarnings("ignore")
def test_ipo_is_trls(folder, tmp_path):
    mine = ours(folder, tmp_path, partial(ipo, beta=0.3), with_logps=True)
    other = theirs(folder, tmp_path, trl.DPOTrainer, trl.DPOConfig, beta=0.3, loss_type=["ipo"])
    assert_equal(mine, other, folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (partial(cpo, beta=0.3, sft_weight=0.0), {"loss_type": "sigmoid", "beta": 0.3}),
        # Its hinge has a margin of 1 and beta as a scale.
        (partial(slic, margin=1.0, sft_weight=0.0), {"loss_type": "hinge", "beta": 1.0}),
    ],
    ids=["cpo", "slic"],
)
def test_cpo_and_slic_are_trls_without_their_sft_terms(folder, tmp_path, objective, options):
    """TRL's SFT terms average over the tokens of a batch, and so depend on what is in it."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    mine = ours(folder, tmp_path, objective, with_logps=False)
    assert_equal(mine, theirs(folder, tmp_path, CPOTrainer, CPOConfig, cpo_alpha=0.0, **options), folder)


def test_the_odds_ratio_of_orpo_is_trls():
    """TRL's whole loss has an SFT term over prompt and response; the other term is compared, and the sum by its paper."""
    from types import SimpleNamespace

    from trl.experimental.orpo import ORPOTrainer

    means = -torch.rand(8) * 3 - 0.05
    theirs = ORPOTrainer.odds_ratio_loss(
        SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu")), *means.chunk(2)
    )[0]
    batch = Batch(None, None, torch.ones(8, 1), torch.zeros(8), torch.ones(8, 1, dtype=torch.bool))
    mine = orpo(means[:, None], batch, beta=0.2)
    torch.testing.assert_close(mine.loss_B, -means[:4] - theirs)
