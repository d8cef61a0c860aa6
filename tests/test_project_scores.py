"""`sepo project-scores`: a policy with another tokenizer trains on an oracle's scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import LlamaConfig

from stages import check, make_demo, project_scores
from stages.configs import CheckConfig, DemoConfig, ProjectScoresConfig
from stages.data.layouts import read_pairs
from stages.demo.language import REWARDS
from stages.errors import SepoError
from stages.method.selection import select_by_keys, signed
from stages.models.folders import load_tokenizer, save_model
from stages.reporting import Quiet
from stages.store.place import Place, place_of
from stages.store.scores import open_scores
from stages.store.shards import write_shard
from stages.tokens.chat import REWRITTEN
from stages.tokens.encode import Encoder
from stages.tokens.fingerprint import vocabulary_hash
from stages.types import Dropped, PairLogps, ScoredPair
from tests.conftest import tiny_llama, word_rows, write_lines
from tests.tokenizers_zoo import FAMILIES, dress
from tests.training.fits import Killed, KilledAfter
from tests.world import run_policy, run_score


def describe(folder, tokenizer):
    """A model folder without weights: projection needs none."""
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def strong(tmp_path_factory):
    """A policy whose tokenizer is like Mistral's, its template with a BOS."""
    folder = tmp_path_factory.mktemp("strong")
    tokenizer = dress(FAMILIES["metaspace_first"](), "bos")
    save_model(tiny_llama(len(tokenizer), seed=5), tokenizer, folder)
    return folder


def carry(scores, model, dataset, output, reporter=None, **options):
    config = ProjectScoresConfig(
        scores=str(scores), model=str(model), dataset=str(dataset), output_dir=str(output), **options
    )
    return project_scores.run(config, reporter or Quiet())


def rows_of(folder):
    return {row.pair.pair_id: row for row in open_scores(folder).rows()}


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def assert_conserved(before, after):
    """Every response keeps the sum of its scores, to 1e-4 of the sum of their sizes."""
    for pair_id, row in after.items():
        for side in ("chosen", "rejected"):
            old, new = (np.asarray(getattr(each.scores, side), np.float64) for each in (before[pair_id], row))
            assert abs(new.sum() - old.sum()) <= 1e-4 * np.abs(old).sum()


@pytest.fixture(scope="module")
def carried(world, strong, tmp_path_factory):
    output = tmp_path_factory.mktemp("carried") / "scores"
    carry(world / "scores", strong, world / "pairs.jsonl", output)
    return output


def test_the_policy_trains_on_scores_that_it_refused_before(world, strong, carried, tmp_path):
    with pytest.raises(SepoError, match="is not the one") as refused:
        run_policy(tmp_path, strong, scores_dir=str(world / "scores"))
    assert not (tmp_path / "policy").exists()
    assert "sepo project-scores" in refused.value.hint
    run_policy(tmp_path, strong, scores_dir=str(carried))
    assert manifest_of(tmp_path / "policy")["counts"]["kept"] == 40
    assert manifest_of(tmp_path / "policy")["warnings"] == []


def test_ids_are_the_policy_s_sums_are_the_oracle_s_and_nothing_else_is_claimed(world, strong, carried):
    encoder = Encoder(load_tokenizer(strong, trust_remote_code=False))
    before, after = rows_of(world / "scores"), rows_of(carried)
    assert list(after) == list(before) == list(range(40))
    for pair in read_pairs(str(world / "pairs.jsonl")):
        for ours, theirs in zip(after[pair.pair_id].pair, encoder.encode(pair), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert after[pair.pair_id].reference is None
        for ours, theirs in zip(after[pair.pair_id].scores, before[pair.pair_id].scores, strict=True):
            assert ours[-1] == pytest.approx(theirs[-1], abs=1e-5), "the end of turn keeps its own"
    assert_conserved(before, after)
    manifest = manifest_of(carried)
    assert manifest["counts"] == {
        "read": 40, "kept": 40, "dropped": {}, "truncated": 0,
        "tokens": {name: sum(len(getattr(row.pair, f"{name}_ids")) for row in after.values())
                   for name in ("prompt", "chosen", "rejected")},
    }  # fmt: skip
    source = manifest_of(world / "scores")
    assert manifest["results"]["source"] == {"fingerprint": source["fingerprint"], "results": source["results"]}
    assert "noise" not in manifest["results"]
    assert manifest["results"]["accuracy"] == source["results"]["accuracy"]
    assert manifest["results"]["largest_error"] < 1e-6
    assert manifest["warnings"] == [f"of the scores before projection: {text}" for text in source["warnings"]]


def test_what_denoise_needs_is_left_behind_not_in_silence(world, strong, tmp_path):
    """Folds are told by the ids of the scorer's prompts, and KL is that of its tokens."""
    shutil.copytree(world / "scores", tmp_path / "s")
    written = manifest_of(tmp_path / "s")
    for stage, said in (("score", 1), ("denoise", 0)):
        changed = {**written, "stage": stage, "settings": {**written["settings"], "folds": 2}}
        (tmp_path / "s/manifest.json").write_text(json.dumps(changed))
        carry(tmp_path / "s", strong, world / "pairs.jsonl", tmp_path / stage)
        warned = manifest_of(tmp_path / stage)["warnings"]
        assert sum("denoise before projecting" in text for text in warned) == said
        assert "folds" not in manifest_of(tmp_path / stage)["settings"]


def test_there_and_back_keeps_sums_and_the_scores_between_common_borders(world, strong, carried, chat_folder, tmp_path):
    carry(carried, chat_folder, world / "pairs.jsonl", tmp_path / "back")
    before, back = rows_of(world / "scores"), rows_of(tmp_path / "back")
    assert_conserved(before, back)
    encoders = [Encoder(load_tokenizer(folder, trust_remote_code=False)) for folder in (chat_folder, strong)]
    same = 0
    for pair in read_pairs(str(world / "pairs.jsonl")):
        mine, others = (encoder.offsets(pair).chosen.ends for encoder in encoders)
        np.testing.assert_array_equal(back[pair.pair_id].pair.chosen_ids, before[pair.pair_id].pair.chosen_ids)
        common = np.isin(np.append(0.0, mine), np.append(0.0, others))
        whole = common[1:] & common[:-1]
        old, new = before[pair.pair_id].scores.chosen, back[pair.pair_id].scores.chosen
        np.testing.assert_allclose(new[whole], old[whole], atol=1e-5)
        same += whole.sum()
    assert same > 100


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_tokenizer(family, world, tmp_path):
    model = describe(tmp_path / "model", dress(FAMILIES[family](), "llama2"))
    carry(world / "scores", model, world / "pairs.jsonl", tmp_path / "out")
    assert_conserved(rows_of(world / "scores"), rows_of(tmp_path / "out"))
    assert manifest_of(tmp_path / "out")["counts"]["kept"] == 40


# --- the planted truth ---


def planted_scores(folder, dataset, tokenizer, spread):
    """What a foreign scorer might write: the planted reward of every word, in noise."""
    rng = np.random.default_rng(0)
    encoder, rows = Encoder(tokenizer), []
    for pair in read_pairs(str(dataset)):
        ids = encoder.encode(pair)
        if isinstance(ids, Dropped):
            continue
        sides = []
        for side in (ids.chosen_ids, ids.rejected_ids):
            rewards = [REWARDS.get(word, 0.0) for word in tokenizer.convert_ids_to_tokens(side.tolist())]
            sides.append(np.asarray(rewards + rng.normal(0, spread, len(side)), np.float32))
        rows.append(ScoredPair(ids, PairLogps(*sides), None))
    folder.mkdir()
    write_shard(place_of(folder), "scores-00000.parquet", rows, "mine", vocabulary_hash(tokenizer))
    manifest = {"format": 1, "stage": "score", "fingerprint": "mine", "files": ["scores-00000.parquet"]}
    manifest |= {"counts": {"kept": len(rows)}, "tokenizer": {"vocabulary": vocabulary_hash(tokenizer), "size": 1}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    make_demo.run(DemoConfig(output_dir=str(folder), train_pairs=200, test_pairs=2), Quiet())
    tokenizer = load_tokenizer(folder / "model", trust_remote_code=False)
    planted_scores(folder.parent / "scores", folder / "train.jsonl", tokenizer, 0.3)
    return folder.parent


def key_letters(text, sign):
    """For each letter, whether it is of a planted word."""
    found, at = np.zeros(len(text) + 1, bool), 0
    for word in text.split():
        at = text.index(word, at)
        found[at : at + len(word)] = sign * REWARDS.get(word, 0.0) > 0
        at += len(word)
    return found


@pytest.mark.parametrize("family", ["byte_level", "unigram"])
def test_the_planted_words_are_still_found_in_pieces(family, demo, tmp_path):
    """The tokenizers were trained on other text: a word of the demo is five of their tokens. k = 0.3 of all tokens."""
    tokenizer = dress(FAMILIES[family](), "chatml")
    carry(demo / "scores", describe(tmp_path / "model", tokenizer), demo / "demo/train.jsonl", tmp_path / "out",
          tokenizer=str(demo / "demo/model"))  # fmt: skip
    encoder, rows = Encoder(tokenizer), rows_of(tmp_path / "out")
    found, planted, chosen, tokens = 0, 0, 0, 0
    for pair in read_pairs(str(demo / "demo/train.jsonl")):
        masks = select_by_keys(signed(rows[pair.pair_id].scores), 0.3, 0.3)
        for located, mask, sign in zip(encoder.offsets(pair)[2:], masks, (1, -1), strict=True):
            letters = key_letters(located.text, sign)
            middles = (np.append(0.0, located.ends[:-1]) + located.ends) / 2
            key = letters[middles.astype(int)]
            found += (key & mask).sum()
            planted += key.sum()
            chosen += mask.sum()
            tokens += len(mask)
    chance = chosen / tokens
    assert 0.29 < chance < 0.36
    assert found / planted > 2.3 * chance


# --- interrupted, damaged, changed ---


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_an_interrupted_or_damaged_run_goes_on_to_the_same_bytes(world, strong, carried, tmp_path):
    arguments = (world / "scores", strong, world / "pairs.jsonl", tmp_path / "out")
    with pytest.raises(Killed):
        carry(*arguments, KilledAfter(20))
    there = tmp_path / "out/scores-00000.parquet"
    made = there.stat().st_mtime_ns
    assert not (tmp_path / "out/manifest.json").exists()
    carry(*arguments)
    assert there.stat().st_mtime_ns == made
    assert shards(tmp_path / "out") == shards(carried)
    assert manifest_of(tmp_path / "out")["counts"] == manifest_of(carried)["counts"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*shards(carried), "manifest.json"}
    assert carry(*arguments).fresh is False
    (tmp_path / "out/scores-00001.parquet").write_bytes(b"damaged")
    carry(*arguments)
    assert shards(tmp_path / "out") == shards(carried)
    assert there.stat().st_mtime_ns == made


def test_workers_divide_the_shards_and_the_last_one_finishes(world, strong, carried, tmp_path, monkeypatch):
    """Of three shards the second worker has one, which the first reads once; the bytes are those of a run without workers."""
    arguments, folder = (world / "scores", strong, world / "pairs.jsonl", tmp_path / "s"), tmp_path / "s"
    assert carry(*arguments, worker="2/2").title == f"worker 2/2 done; 2 shards of others missing in {folder}"
    found, read = [], Place.read

    def counted(place, name):
        data = read(place, name)
        found.append(place.at(name))
        return data

    monkeypatch.setattr(Place, "read", counted)
    assert carry(*arguments, worker="1/2").title == f"scores in {folder}"
    there = folder / "scores-00001.parquet"
    assert [name for name in found if Path(name).match("s/*.parquet")] == [str(there)]
    assert str(world / "scores" / there.name) not in found, "and of the scores those alone that it projects"
    assert shards(folder) == shards(carried)
    for part in ("counts", "results", "warnings", "shards"):
        assert manifest_of(folder)[part] == manifest_of(carried)[part]


def test_another_tokenizer_is_another_run(world, carried, tmp_path):
    shutil.copytree(carried, tmp_path / "out")
    other = describe(tmp_path / "other", dress(FAMILIES["metaspace_first"](), "llama2"))
    with pytest.raises(SepoError, match="the tokenizer differs"):
        carry(world / "scores", other, world / "pairs.jsonl", tmp_path / "out")
    carry(world / "scores", other, world / "pairs.jsonl", tmp_path / "out", overwrite=True)
    assert shards(tmp_path / "out") != shards(carried)


# --- rows that were cut, dropped, or are none of ours ---


def test_a_response_that_was_cut_ends_with_the_token_that_holds_its_last_letter(world, strong, tmp_path):
    run_score(world, output_dir=str(tmp_path / "scores"), max_length=18, overlong="truncate")
    before = rows_of(tmp_path / "scores")
    end = Encoder(load_tokenizer(world / "oracle/oracle", trust_remote_code=False)).end_of_turn
    cut = [pair_id for pair_id, row in before.items() if row.pair.chosen_ids[-1] != end]
    assert cut
    carry(tmp_path / "scores", strong, world / "pairs.jsonl", tmp_path / "out")
    after = rows_of(tmp_path / "out")
    assert_conserved(before, after)
    encoder = Encoder(load_tokenizer(strong, trust_remote_code=False))
    scorer = Encoder(load_tokenizer(world / "oracle/oracle", trust_remote_code=False))
    pairs = {pair.pair_id: pair for pair in read_pairs(str(world / "pairs.jsonl"))}
    for pair_id in set(cut) & set(after):
        ids, whole = after[pair_id].pair.chosen_ids, encoder.offsets(pairs[pair_id]).chosen
        reached = scorer.offsets(pairs[pair_id]).chosen.ends[len(before[pair_id].pair.chosen_ids) - 1]
        assert ids[-1] != encoder.end_of_turn
        np.testing.assert_array_equal(ids, whole.ids[: len(ids)])
        assert whole.ends[len(ids) - 1] >= reached
        assert len(ids) == 1 or whole.ends[len(ids) - 2] < reached
    assert manifest_of(tmp_path / "out")["counts"]["truncated"] == len(set(cut) & set(after))


def test_rows_whose_text_disagrees_are_dropped_and_counted(demo, tmp_path):
    """The scores name no data set, so that only the ids can tell: one answer was edited, and the last row is gone."""
    lines = (demo / "demo/train.jsonl").read_text().splitlines()
    edited = [json.loads(line) for line in lines[:-1]]
    edited[3]["chosen"] += " today"
    data = write_lines(tmp_path / "edited.jsonl", edited)
    model = describe(tmp_path / "model", dress(FAMILIES["byte_level"](), "chatml"))
    reporter = Quiet()
    carry(demo / "scores", model, data, tmp_path / "out", reporter, tokenizer=str(demo / "demo/model"))
    counts = manifest_of(tmp_path / "out")["counts"]
    dropped = {"not in the data set": 1, "the data set's response is not the one that was scored": 1}
    assert counts["dropped"] == dropped
    assert (counts["read"], counts["kept"]) == (200, 198)
    assert sorted(rows_of(tmp_path / "out")) == [n for n in range(199) if n != 3]
    assert any("1 of 200 pairs were dropped: not in the data set" in text for text in reporter.warnings)
    assert check.run(CheckConfig(scores=str(tmp_path / "out"), model=str(model)), Quiet()).failure is None


def test_a_template_that_writes_another_answer_drops_the_row(world, tmp_path):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] | replace('fox', 'cat') + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    tokenizer = dress(FAMILIES["byte_level"](), template)
    carry(world / "scores", describe(tmp_path / "model", tokenizer), world / "pairs.jsonl", tmp_path / "out")
    foxes = sum("fox" in line for line in (world / "pairs.jsonl").read_text().splitlines())
    dropped = manifest_of(tmp_path / "out")["counts"]["dropped"]
    assert 0 < foxes < 40
    assert dropped == {REWRITTEN: foxes}


# --- options and bad input ---


def test_columns_come_from_the_manifest_or_from_the_user(world, strong, carried, tmp_path):
    lines = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    named = [{"question": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in lines]
    data = write_lines(tmp_path / "named.jsonl", named)
    columns = "prompt=question,chosen=good,rejected=bad"
    run_score(world, output_dir=str(tmp_path / "scores"), dataset=data, columns=columns)
    carry(tmp_path / "scores", strong, data, tmp_path / "out")
    assert_conserved(rows_of(carried), rows_of(tmp_path / "out"))
    assert manifest_of(tmp_path / "out")["settings"]["columns"] == columns
    swapped = "prompt=question,chosen=bad,rejected=good"
    with pytest.raises(SepoError, match=r"no pair is left: 40 rows = 0 kept \+ 40 dropped"):
        carry(tmp_path / "scores", strong, data, tmp_path / "swapped", columns=swapped)


def test_scores_of_the_same_tokenizer_need_no_projection(world, chat_folder, tmp_path):
    with pytest.raises(SepoError, match="there is nothing to project") as refused:
        carry(world / "scores", chat_folder, world / "pairs.jsonl", tmp_path / "out")
    assert refused.value.hint.startswith("sepo train-policy --model")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_alone_is_no_policy(world, strong, tmp_path):
    shutil.copytree(strong, tmp_path / "alone")
    (tmp_path / "alone/config.json").unlink()
    with pytest.raises(SepoError, match="alone is no model folder"):
        carry(world / "scores", tmp_path / "alone", world / "pairs.jsonl", tmp_path / "out")


def test_another_data_set_is_refused(world, strong, tmp_path):
    data = write_lines(tmp_path / "others.jsonl", word_rows(40, seed=1))
    with pytest.raises(SepoError, match=r"is not the data set that .* was made from \(.*pairs\.jsonl\)"):
        carry(world / "scores", strong, data, tmp_path / "out")


def test_a_tokenizer_that_moved_can_be_named(world, strong, carried, chat_folder, tmp_path):
    shutil.copytree(world / "scores", tmp_path / "scores")
    manifest = manifest_of(tmp_path / "scores")
    manifest["input_names"]["tokenizer"] = str(tmp_path / "gone")
    (tmp_path / "scores/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SepoError, match=r"is no longer in .*gone") as refused:
        carry(tmp_path / "scores", strong, world / "pairs.jsonl", tmp_path / "out")
    assert "--tokenizer" in refused.value.hint
    carry(tmp_path / "scores", strong, world / "pairs.jsonl", tmp_path / "out", tokenizer=str(chat_folder))
    assert [pq.read_table(path).to_pydict() for path in sorted((tmp_path / "out").glob("*.parquet"))] == [
        pq.read_table(path).to_pydict() for path in sorted(carried.glob("*.parquet"))
    ]


def test_scores_that_name_no_tokenizer_need_one(demo, strong, tmp_path):
    with pytest.raises(SepoError, match="does not say where its tokenizer is"):
        carry(demo / "scores", strong, demo / "demo/train.jsonl", tmp_path / "out")


def test_a_tokenizer_that_is_not_that_of_the_scores_is_refused(world, strong, tmp_path):
    other = describe(tmp_path / "other", dress(FAMILIES["words"](), "bos"))
    with pytest.raises(SepoError, match=r"is not the one .* was made with"):
        carry(world / "scores", strong, world / "pairs.jsonl", tmp_path / "out", tokenizer=str(other))


def test_arguments_of_the_template_come_from_the_scores_or_from_the_user(world, strong, carried, tmp_path):
    given = '{"style": "short"}'
    carry(world / "scores", strong, world / "pairs.jsonl", tmp_path / "out", chat_template_kwargs=given)
    carry(tmp_path / "out", world / "oracle/oracle", world / "pairs.jsonl", tmp_path / "back")
    assert manifest_of(carried)["settings"]["chat_template_kwargs"] is None
    for name in ("out", "back"):
        assert manifest_of(tmp_path / name)["settings"]["chat_template_kwargs"] == given
