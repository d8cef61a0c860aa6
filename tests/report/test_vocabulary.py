"""Whose tokenizer is read, and how a token is shown."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer

from stages.errors import SepoError
from stages.report.vocabulary import Vocabulary, open_vocabulary
from stages.tokens.fingerprint import vocabulary_hash, vocabulary_size
from tests.tokenizers_zoo import FAMILIES, byte_level, dress, sentencepiece


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_tokenizer_that_transformers_reads(family):
    ours, theirs = Vocabulary(FAMILIES[family]()), dress(FAMILIES[family]())
    assert (ours.hash, ours.size) == (vocabulary_hash(theirs), vocabulary_size(theirs))
    assert {*ours.control} == {*theirs.added_tokens_decoder}


def test_types_have_their_blanks_and_control_tokens_their_marks():
    for tokenizer in (byte_level(), sentencepiece("always")):
        vocabulary, ids = Vocabulary(tokenizer), tokenizer.encode("It is", add_special_tokens=False).ids
        assert vocabulary.type_text(ids[-1]) == "·is"
        assert vocabulary.type_text(2) == "«</s>»"
    blank = Tokenizer.from_str(byte_level().to_str())
    blank.add_tokens([AddedToken("  ", normalized=False)])
    assert Vocabulary(blank).type_text(blank.token_to_id("  ")) == "··"


def test_whose_it_is(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "broken").mkdir()
    byte_level().save(str(tmp_path / "ours/tokenizer.json"))
    sentencepiece("always").save(str(tmp_path / "other/tokenizer.json"))
    (tmp_path / "broken/tokenizer.json").write_text("{")
    wanted = {"tokenizer": {"vocabulary": Vocabulary(byte_level()).hash}}
    named = [
        wanted | {"input_names": {"tokenizer": str(tmp_path / name)}} for name in ("ours", "other", "broken", "gone")
    ]
    assert isinstance(open_vocabulary(named[0], None), Vocabulary)
    assert isinstance(open_vocabulary(wanted, str(tmp_path / "ours")), Vocabulary)
    for manifest, said in zip(
        [wanted, *named[1:]],
        ["names no tokenizer", "is not that of the scores", "cannot read", "there is no tokenizer.json in"],
        strict=True,
    ):
        why = open_vocabulary(manifest, None)
        assert said in why
        assert "tokens are shown by their ids" in why
        assert "--tokenizer" in why
        assert "\n" not in why
    for name in ("other", "broken", "gone"):
        with pytest.raises(SepoError) as caught:
            open_vocabulary(named[0], str(tmp_path / name))
        assert caught.value.hint


def test_a_name_of_the_hub_is_looked_for_in_its_cache_alone(tmp_path, monkeypatch):
    asked = []

    def download(repository, file, *, revision, local_files_only):
        asked.append((repository, file, revision, local_files_only))
        byte_level().save(str(tmp_path / file))
        return str(tmp_path / file)

    monkeypatch.setattr("stages.report.vocabulary.hf_hub_download", download)
    manifest = {"tokenizer": {"vocabulary": Vocabulary(byte_level()).hash}, "input_names": {"tokenizer": "org/name@v1"}}
    assert isinstance(open_vocabulary(json.loads(json.dumps(manifest)), None), Vocabulary)
    assert isinstance(open_vocabulary(manifest, "org/other"), Vocabulary)
    assert asked == [("org/name", "tokenizer.json", "v1", True), ("org/other", "tokenizer.json", None, False)]
