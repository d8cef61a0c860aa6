"""Small real models and tokenizers, made on the spot; nothing is downloaded and nothing is mocked."""

import gc
import json
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from stages.reporting import Quiet
from stages.types import Example, PairWeights, TokenPair

# In the background of a shell that has no job control (`make test &`) Ctrl-C is ignored, here and in what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

REAL = Path(__file__).parents[2] / "shared" / "real"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "what is the capital of France? It is Paris, of course.",
    "I would rather not say anything about that, sorry!",
    "user assistant system Hello there 0123456789",
]


def byte_level_tokenizer(template, **special):
    """A byte-level BPE tokenizer trained on a few sentences; `special` are its special tokens by their role."""
    tokens = sorted(set(special.values()) | {"<|im_start|>", "<|im_end|>"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=tokens, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return fast


LONGEST = ("processes", "never_lost", "training_lives", "engines", "policy", "makefile", "lora_pipeline")
"""files that take longest, which start first, so that none of them is alone at the end"""


def pytest_collection_modifyitems(items):
    names = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


def pytest_collection_finish():
    keep_what_is_loaded()


def keep_what_is_loaded():
    """What was imported and collected stays: every training's collection of garbage would walk through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Tokens are kept here, and never in the home of whoever runs the tests."""
    os.environ["SEPO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def sketched():
    """Training draws no picture; tests/report looks at pictures, and `make all` draws those of all stages."""
    from tests.world import sketch_curves

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.report.card.draw_curves", sketch_curves)
        yield


@pytest.fixture(scope="session")
def chatml():
    """Like SmolLM2's: the end-of-turn token is eos and pad at once, a newline follows it, and there is no BOS."""
    return byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")


def tiny_llama(vocab_size, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    config = LlamaConfig(
        vocab_size=vocab_size, initializer_range=0.2, bos_token_id=None, eos_token_id=None, **{**sizes, **options}
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(vocab_size, seed=0, positions=256, heads=4):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=positions, n_embd=32, n_layer=2, n_head=heads, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory, chatml):
    """A folder with a tiny random Llama (tied embeddings, like SmolLM2) and the ChatML tokenizer."""
    folder = tmp_path_factory.mktemp("chat-model")
    tiny_llama(len(chatml), tie_word_embeddings=True).save_pretrained(folder)
    chatml.save_pretrained(folder)
    return folder


class Listens(Quiet):
    """Remembers what was said, beside the warnings."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


def token_pair(pair_id, prompt, chosen, rejected):
    return TokenPair(pair_id, *(np.array(ids, np.int32) for ids in (prompt, chosen, rejected)))


def random_pairs(count, vocab_size, seed=0, longest=12):
    """Pairs of random ids whose lengths all differ."""
    rng = np.random.default_rng(seed)

    def draw(low):
        return rng.integers(0, vocab_size, rng.integers(low, longest + 1))

    return [token_pair(number, draw(1), draw(1), draw(1)) for number in range(count)]


def masked(pair, chosen_places, rejected_places):
    """An example in which only some response tokens have weight 1."""
    chosen = np.zeros(len(pair.chosen_ids), np.float32)
    rejected = np.zeros(len(pair.rejected_ids), np.float32)
    chosen[chosen_places] = 1
    rejected[rejected_places] = 1
    return Example(pair, PairWeights(chosen, rejected))


def write_lines(path, rows):
    path = Path(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def word_rows(count, seed=0):
    """Preference rows in which the better answer is the friendlier one."""
    rng = np.random.default_rng(seed)
    nouns, good, bad = ["fox", "dog", "France", "Paris"], ["quick", "Hello", "course"], ["lazy", "sorry", "not"]
    rows = []
    for number in range(count):
        noun = nouns[rng.integers(len(nouns))]
        answers = [f"the {words[rng.integers(len(words))]} {noun} jumps {number}" for words in (good, bad)]
        rows.append({"prompt": f"what is the {noun}?", "chosen": answers[0], "rejected": answers[1]})
    return rows


@pytest.fixture(scope="session")
def world(tmp_path_factory, chat_folder):
    """A finished run of all three stages on 40 pairs, to look at and not to touch."""
    from tests.world import run_oracle, run_policy, run_score

    root = tmp_path_factory.mktemp("world")
    write_lines(root / "pairs.jsonl", word_rows(40))
    run_oracle(root, chat_folder)
    run_score(root)
    run_policy(root, chat_folder)
    keep_what_is_loaded()
    return root
