"""The dry run: what it counts is what the stages will count, what it shows is what they will read."""

import gzip
import json
import os
import shutil

import pytest

from stages import validate
from stages.configs import ValidateConfig, byte_count
from stages.errors import SepoError
from stages.models.folders import load_tokenizer
from stages.reporting import Quiet
from stages.tokens.dataset import LengthLimit, load_pairs
from stages.tokens.encode import Encoder
from tests.conftest import REAL, byte_level_tokenizer, tiny_llama, word_rows, write_lines
from tests.data.turns import bot, user

SAME = {"prompt": "what?", "chosen": "It is", "rejected": "It is"}
EMPTY = {"prompt": "what?", "chosen": " ", "rejected": "It is"}
CONTROL = {"prompt": "what?", "chosen": "so <|im_end|>", "rejected": "It is"}


@pytest.fixture(scope="session")
def bare_folder(tmp_path_factory, chatml):
    """Only a configuration and a tokenizer: there are no weights that could be loaded."""
    folder = tmp_path_factory.mktemp("bare")
    tiny_llama(len(chatml), tie_word_embeddings=True).config.save_pretrained(folder)
    chatml.save_pretrained(folder)
    return folder


@pytest.fixture
def look(tmp_path, bare_folder):
    def run(rows, reporter=None, model=bare_folder, **options):
        dataset = rows if isinstance(rows, str) else str(write_lines(tmp_path / "pairs.jsonl", rows))
        options = {"max_length": 128, **options}
        config = ValidateConfig(model=str(model), dataset=dataset, json=True, **options)
        return validate.run(config, reporter or Quiet())

    return run


def rows_of(summary):
    return dict(summary.rows)


def table(summary, start):
    [found] = [each for each in summary.tables if each.title.startswith(start)]
    return found


def ragged(count=60):
    """Pairs whose lengths differ, and some that are equal once they are cut."""
    words = ["It", "is", "Paris,", "of", "course,", "sorry!", ""]
    return [
        {
            "prompt": "what is " * (1 + number % 3),
            "chosen": " ".join(words[: 1 + number % 5]) + " the lazy dog" * (number % 4),
            "rejected": " ".join(words[: 1 + number % 5]) + " the quick fox" * (number % 4) + " no",
        }
        for number in range(count)
    ]


def test_the_counts_are_those_of_the_stages(look, bare_folder):
    reasons = set()
    encoder = Encoder(load_tokenizer(bare_folder, trust_remote_code=False))
    for limit in [LengthLimit(25), LengthLimit(20), LengthLimit(21, "truncate"), LengthLimit(19, "truncate")]:
        found = look([*ragged(), SAME, EMPTY, CONTROL], **limit._asdict()).json
        theirs = load_pairs(found["dataset"], encoder, limit, columns={}, reporter=Quiet())[1].as_json()
        assert {reason: dropped["count"] for reason, dropped in found["rows"]["dropped"].items()} == theirs["dropped"]
        counts = [found["rows"][name] for name in ("read", "kept", "truncated")]
        assert counts == [63, theirs["kept"], theirs["truncated"]]
        assert found["tokens_kept"] == theirs["tokens"]
        reasons |= set(theirs["dropped"])
    assert reasons == {
        "longer than 25 tokens",
        "longer than 20 tokens",
        "prompt leaves no room for a response in 19 tokens",
        "chosen equals rejected",
        "empty response",
        "text spells a control token",
        "chosen equals rejected once cut",
    }


def test_dropped_rows_are_shown_with_their_numbers(look):
    summary = look([*word_rows(4), SAME, EMPTY, *word_rows(3), SAME, SAME, SAME, SAME])
    assert rows_of(summary)["rows"] == "13 read = 7 kept + 6 dropped"
    assert table(summary, "Dropped rows").rows == [
        ["chosen equals rejected", "5", "38.5%", "row 4, row 9, row 10"],
        ["empty response", "1", "7.7%", "row 5"],
    ]
    assert rows_of(summary)["chosen equals rejected"] == "5 rows, dropped"
    assert summary.failure is None
    assert not [each for each in look(word_rows(4)).tables if each.title.startswith("Dropped")]


def test_the_columns_are_said_with_what_they_are_read_as(look):
    rows = [{"question": "what?", "good": [bot("It is")], "bad": [bot("no")], "id": 1, "note": "x"}]
    summary = look(rows, columns="prompt=question,chosen=good,rejected=bad")
    assert rows_of(summary)["layout"] == "prompt, answers as turns"
    assert rows_of(summary)["columns read"] == "question as prompt (text), good as chosen (a list), bad as rejected (a list)"  # fmt: skip
    assert rows_of(summary)["columns not read"] == "id, note"
    assert summary.json["layout"]["columns"] == {"prompt": "question", "chosen": "good", "rejected": "bad"}
    alpaca = {"instruction": "a", "input": "b", "chosen": "It is", "rejected": "no", "system": "s", "output": "x"}
    assert look([alpaca]).json["layout"] == {
        "name": "LLaMA-Factory alpaca: instruction, chosen, rejected, with a system column",
        "columns": {name: name for name in ("instruction", "input", "chosen", "rejected", "system")},
        "kinds": dict.fromkeys(("instruction", "input", "chosen", "rejected", "system"), "text"),
        "not_read": ["output"],
    }


def test_the_pair_that_is_shown_is_the_first_that_will_be_used(look):
    long = {"prompt": "what is " * 40, "chosen": "It is", "rejected": "no"}
    summary = look([SAME, long, *word_rows(2)], max_length=60)
    example = summary.json["example"]
    assert example["pair"]["pair_id"] == 2
    assert example["pair"]["prompt"] == [user(word_rows(1)[0]["prompt"])]
    assert [each.title.split(" (")[0] for each in summary.tables if each.texts] == [
        "Row 2 as it was understood",
        "Row 2 as tokens",
    ]


def test_the_ids_that_are_shown_are_the_ids_of_that_row(look, chatml):
    [row] = word_rows(1)
    ids = look([row]).json["example"]["ids"]
    assert chatml.decode(ids["chosen_ids"]) == row["chosen"] + "<|im_end|>"
    assert row["prompt"] in chatml.decode(ids["prompt_ids"])


def test_repeats_and_lengths(look):
    rows = word_rows(3)
    summary = look([*rows, rows[1], rows[1], rows[0] | {"chosen": "something else entirely, of course"}])
    assert rows_of(summary)["the same pair again"] == "2 pairs"
    prompts = {row["prompt"] for row in rows}
    assert rows_of(summary)["prompts"].startswith(f"{len(prompts)} different ones")
    assert summary.json["repeats"]["pairs"] == 2
    lengths = summary.json["lengths"]
    assert lengths["whole row"]["max"] >= lengths["prompt"]["max"] + lengths["chosen"]["median"]


def test_what_a_limit_would_do_the_other_way(look):
    dropped, cut, error = (look(ragged(), max_length=25, overlong=how) for how in ("drop", "truncate", "error"))
    effect = dropped.json["max_length"]
    assert effect == cut.json["max_length"] == error.json["max_length"]
    assert effect["pairs"] == dropped.json["rows"]["dropped"]["longer than 25 tokens"]["count"]
    assert f"dropped; truncating keeps {effect['pairs'] - effect['without_room']} of them" in rows_of(dropped)["longer than 25"]  # fmt: skip
    assert rows_of(look(ragged()))["longer than 128"] == "no pair"
    assert error.failure.message.endswith(f": {effect['pairs']} pairs have more than 25 tokens")
    assert cut.failure is None


def test_nothing_usable_is_a_failure_after_everything_was_shown(look):
    summary = look([SAME, EMPTY, SAME])
    assert rows_of(summary)["rows"] == "3 read = 0 kept + 3 dropped"
    assert table(summary, "Dropped rows").rows[0] == ["chosen equals rejected", "2", "66.7%", "row 0, row 2"]
    assert summary.failure.message.endswith(
        ": no pair is left: 3 rows = 0 kept + 3 dropped (2 chosen equals rejected, 1 empty response)"
    )
    assert summary.failure.hint == "see the reasons: the data or the chat template has to change"
    assert summary.json["error"] == summary.failure.message
    assert summary.json["estimate"]["stages"] == []


def test_pairs_that_are_all_too_long_are_still_measured(look):
    summary = look(word_rows(5), max_length=3)
    assert "5 longer than 3 tokens" in summary.failure.message
    assert summary.failure.hint == "--max-length may be too low"
    assert look([*word_rows(2), SAME, SAME, SAME], max_length=3).failure.hint.startswith("see the reasons")
    assert table(summary, "Tokens").rows
    assert summary.json["example"]["pair"]["pair_id"] == 0


def test_pairs_that_are_equal_once_cut_need_more_length(look):
    rows = [{"prompt": "what?", "chosen": "It is Paris, of course", "rejected": "It is Paris, sorry!"}] * 2
    prompt = len(look(rows).json["example"]["ids"]["prompt_ids"])
    failure = look([*rows, SAME], max_length=prompt + 1, overlong="truncate").failure
    assert "(2 chosen equals rejected once cut, 1 chosen equals rejected)" in failure.message
    assert failure.hint == "--max-length may be too low"
    assert look(rows, max_length=prompt + 12, overlong="truncate").failure is None


def test_strict_makes_every_drop_a_failure(look):
    assert look(word_rows(5), strict=True).failure is None
    assert look([*word_rows(5), SAME]).failure is None
    failure = look([*word_rows(5), SAME], strict=True).failure
    assert failure.message.endswith(": 1 of 6 rows would be dropped: 1 chosen equals rejected (first: row 5)")
    assert "longer than 10 tokens" in look(word_rows(5), strict=True, max_length=10).failure.message


def warned(look, rows, **options):
    reporter = Quiet()
    summary = look(rows, reporter, **options)
    assert summary.json["warnings"] == reporter.warnings
    return "\n".join(reporter.warnings)


def test_a_length_that_tells_the_label_is_warned_of(look):
    longer = [{"prompt": "what?", "chosen": "It is " * (2 + n % 3), "rejected": f"no {n}"} for n in range(40)]
    assert "the chosen response is the longer one in 100% of pairs" in warned(look, longer)
    shorter = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in longer]
    assert "the chosen response is the shorter one in 100% of pairs" in warned(look, shorter)
    assert "the chosen response" not in warned(look, longer[:20] + shorter[20:])


TOOLS = {"tools": [{"type": "function", "function": {"name": "weather"}}]}


def test_tools_that_no_model_will_see_are_warned_of(look):
    assert "rows bring tools, but the chat template does not write them" in warned(look, [*word_rows(3), SAME | TOOLS | {"rejected": "no"}])  # fmt: skip
    assert "tools" not in warned(look, [row | {"tools": []} for row in word_rows(3)])


def folder_with(tmp_path, tokenizer, vocabulary=None):
    tiny_llama(vocabulary or len(tokenizer)).config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_facts_of_the_tokenizer(look, tmp_path):
    facts = rows_of(look(word_rows(2)))
    assert facts["end of turn"].startswith("<|im_end|> (")
    assert facts["BOS"] == "none"
    assert "the same as eos" in facts["padding"]
    twice = "{{ bos_token + bos_token }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '</s>' }}{% endfor %}"
    model = folder_with(tmp_path, byte_level_tokenizer(twice, bos_token="<s>", eos_token="</s>"))
    assert "begins with more than one BOS" in warned(look, word_rows(2), model=model)
    shutil.rmtree(model)
    model = folder_with(tmp_path, byte_level_tokenizer(None, bos_token="<s>"), vocabulary=50)
    facts = rows_of(look(word_rows(2), model=model))
    assert "no chat template" in facts["tokenizer"]
    assert facts["end of turn"] == "none, eos none"
    assert facts["padding"] == "none"
    said = warned(look, word_rows(2), model=model)
    assert "no response will be taught to end" in said
    assert "the model has room for 50" in said


def test_a_limit_beyond_what_the_model_was_made_for_is_warned_of(look):
    assert "the model was made for 256 tokens" in warned(look, word_rows(2), max_length=300)
    assert "the model was made for" not in warned(look, word_rows(2), max_length=256)


def test_a_stage_that_will_not_fit_is_warned_of(look, monkeypatch):
    stages = "SFT (train-oracle), DPO (train-oracle), score, train-policy"
    said = f"{stages} need more memory than the 0.0001 GB here; --lora-rank trains with less, "
    said += "and --plan says what fits other machines"
    assert said not in warned(look, word_rows(200))
    monkeypatch.setattr(validate, "memory_of", lambda device: 100_000)
    assert said in warned(look, word_rows(200))


def test_the_estimate_is_of_what_is_kept(look):
    costs = look(word_rows(40)).json["estimate"]["stages"]
    kept = look(word_rows(40)).json["tokens_kept"]
    assert costs[3]["tokens"] == kept["prompt"] + kept["chosen"] + kept["rejected"]
    assert [cost["steps"] for cost in costs] == [1, 1, None, 1]


PLAN = {"plan": True, "world_size": 8, "device_memory": "10MB"}


def test_every_option_of_a_plan_changes_it(look):
    def plan(**options):
        found = look(word_rows(40), **{**PLAN, **options}).json
        return found["plan"], found["estimate"]["stages"]

    before, costs = plan(use_fsdp=True)
    assert (before["world_size"], before["device_memory"], before["fits"]) == (8, 10**7, True)
    assert before["bytes"]["weights"] < before["loading"]
    assert plan(device_memory="100KB", use_fsdp=True)[0]["fits"] is False
    assert plan(world_size=4, use_fsdp=True)[0]["bytes"]["weights"] == pytest.approx(
        2 * before["bytes"]["weights"], rel=0.01
    )
    whole = plan()[0]
    ddp = whole["bytes"]
    assert (ddp["gathered"], ddp["weights"], ddp["buckets"]) == (0, whole["loading"], ddp["gradients"])
    assert ddp["weights"] == pytest.approx(8 * before["bytes"]["weights"], rel=0.01)
    assert plan(mixed_precision="bf16")[0]["bytes"]["activations"] < ddp["activations"]
    assert plan(gradient_checkpointing=True)[0]["bytes"]["activations"] < ddp["activations"]
    assert plan(gradient_checkpointing=True)[1][3]["recomputed"] > 0
    assert plan(max_tokens_per_device=3)[0]["micro_batch_tokens"] < before["micro_batch_tokens"]
    assert plan(batch_size=8, use_fsdp=True)[0]["micro_batch_tokens"] < before["micro_batch_tokens"]
    lora = plan(lora_rank=4)[0]["bytes"]
    assert 2 * lora["gradients"] == lora["moments"] < ddp["gradients"]
    assert plan(lora_rank=4, lora_target_modules="q_proj")[0]["bytes"]["gradients"] < lora["gradients"]
    assert plan(lora_rank=4, quantize="4bit")[0]["bytes"]["weights"] < lora["weights"]
    assert plan(optim="adamw-8bit")[0]["bytes"]["moments"] * 4 == ddp["moments"]
    timed = plan(peak_tflops=1.0)[1][3]["hours"]
    assert timed == pytest.approx(costs[3]["operations"] / (8 * 0.3e12 * 3600))
    assert plan(peak_tflops=1.0, mfu=0.6)[1][3]["hours"] == pytest.approx(timed / 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plan": False}, "world_size needs plan; device_memory needs plan"),
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"world_size": 1, "use_fsdp": True}, "use_fsdp needs a world_size of at least 2"),
        ({"device_memory": "80"}, "device_memory must be a size like 80GB or 80GiB, got '80'"),
        ({"quantize": "4bit"}, "quantize needs lora_rank"),
        ({"quantize": "8bit", "lora_rank": 4, "use_fsdp": True}, "use_fsdp cannot divide weights in 8 bits"),
        ({"mixed_precision": "fp16", "use_fsdp": True}, "use_fsdp does not train in mixed_precision fp16"),
        ({"mfu": 0.5}, "mfu needs peak_tflops"),
        ({"lora_rank": 4, "lora_target_modules": "nobody"}, "lora_target_modules nobody does not fit LlamaForCausalLM"),
        ({"lora_rank": 4000}, "lora_rank 4,000 is above the highest rank of a layer, 32"),
        ({"optim": "adamw-8bit", "use_fsdp": True}, "optim adamw-8bit cannot step weights that FSDP2 divides"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(look, options, said):
    with pytest.raises(SepoError) as caught:
        look(word_rows(2), **{**PLAN, **options})
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_plan_of_weights_in_few_bits_is_refused(look, bare_folder, tmp_path):
    model = shutil.copytree(bare_folder, tmp_path / "few")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(SepoError, match=r"in 4 bits \(gptq\), of which a plan knows no size"):
        look(word_rows(2), model=model, lora_rank=4, **PLAN)


def test_sizes_of_memory():
    sizes = ["80GB", "80GiB", "1.5 TB", "512mib", "80", "GB", "-1GB", "0GB"]
    assert [byte_count(size) for size in sizes] == [80 * 10**9, 80 * 2**30, 15 * 10**11, 2**29, 0, 0, 0, 0]


def test_nothing_but_the_cache_is_written(look, tmp_path, bare_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEPO_CACHE", str(tmp_path / "cache"))
    before = sorted(os.listdir(bare_folder))
    look(word_rows(3))
    assert sorted(os.listdir(tmp_path)) == ["cache", "pairs.jsonl"]
    assert sorted(os.listdir(bare_folder)) == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "so"}], ":1: no known layout in the columns text"),
        ([*word_rows(2), {"prompt": "a", "chosen": "b"}], ':3: no "rejected"'),
        ([*word_rows(2), TOOLS | {"tools": 3} | SAME], ':3: "tools" is a number'),
    ],
)
def test_what_cannot_be_trusted_is_refused(look, rows, said):
    with pytest.raises(SepoError) as caught:
        look(rows)
    assert said in caught.value.message


def test_a_folder_that_is_no_model(look, tmp_path):
    for model in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SepoError, match="model folder"):
            look(word_rows(2), model=model)


def by_hand(name, tokenizer):
    """Counts and lengths with nothing of ours: rows as JSON, turns by hand, ids by transformers."""
    found = {"kept": 0, "prompt": 0, "chosen": 0, "rejected": 0}
    for line in gzip.decompress((REAL / f"{name}.jsonl.gz").read_bytes()).splitlines():
        row = json.loads(line)
        sides = [dialogue(row[side]) if isinstance(row[side], str) else row[side] for side in ("chosen", "rejected")]
        roles = [turn["role"] for turn in sides[0]]
        alternate = roles == ["user", "assistant"] * (len(roles) // 2)
        if not alternate or sides[0][:-1] != sides[1][:-1] or not all(turns[-1]["content"].strip() for turns in sides):
            continue
        options = {"tokenize": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(sides[0][:-1], add_generation_prompt=True, **options)
        found["kept"] += 1
        found["prompt"] += len(prompt)
        for side, turns in zip(("chosen", "rejected"), sides, strict=True):
            # The template's newline behind the end of turn is nothing that a model is asked for.
            found[side] += len(tokenizer.apply_chat_template(turns, **options)) - len(prompt) - 1
    return found


def dialogue(text):
    marked = text.replace("\n\nAssistant:", "\0\nA").replace("\n\nHuman:", "\0\nH")
    roles = {"H": "user", "A": "assistant"}
    return [{"role": roles[part[0]], "content": part[1:].removeprefix(" ")} for part in marked.split("\0\n") if part]


@pytest.mark.skipif(not REAL.exists(), reason="shared/real is not here")
@pytest.mark.parametrize(("name", "read", "kept"), [("hh_harmless", 1500, 1492), ("ultrafeedback_shaped", 1590, 1590)])
def test_real_data_by_an_independent_count(look, chatml, name, read, kept):
    found = look(str(REAL / f"{name}.jsonl.gz"), max_length=100_000).json
    assert (found["rows"]["read"], found["rows"]["kept"]) == (read, kept)
    assert found["tokens_kept"] | {"kept": kept} == by_hand(name, chatml)
