"""`sepo check`: scores are sound, or what is wrong with them is said; and tools that are not ours open them."""

import json
import shutil

import pytest

from stages import check
from stages.configs import CheckConfig
from stages.models.folders import save_model
from stages.reporting import Quiet
from stages.store.manifest import FINISHED
from stages.store.scores import open_scores
from tests.conftest import CHATML, byte_level_tokenizer, tiny_llama


def looked_at(scores, model=None):
    return check.run(CheckConfig(scores=str(scores), model=model and str(model)), Quiet())


def test_scores_are_sound_or_it_is_said_what_is_wrong(world, tmp_path):
    summary = looked_at(world / "scores", model=world / "oracle/oracle")
    assert summary.failure is None
    shutil.copytree(world / "scores", tmp_path / "s")
    path = tmp_path / "s/scores-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "s/scores-00002.parquet").unlink()
    summary = looked_at(tmp_path / "s")
    found = summary.tables[0].markdown()
    assert summary.failure is not None
    assert "scores-00002.parquet is missing" in found
    assert "scores-00001.parquet is damaged: its checksum is not the manifest's" in found
    assert "16 sound rows, but the manifest says 40" in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": [{}]}, "files is not a list of names"),
        ({"files": "abc"}, "files is not a list of names"),
        ({"counts": {"kept": "300"}}, "counts.kept is not a whole number"),
        ({"counts": {"kept": 300}}, "40 sound rows, but the manifest says 300"),
        ({"files": ["scores-00000.parquet", "scores-00001.parquet"]}, "scores-00002.parquet is not the manifest's"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_named(world, tmp_path, change, said):
    shutil.copytree(world / "scores", tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / FINISHED).read_text())
    (tmp_path / "s" / FINISHED).write_text(json.dumps(manifest | change))
    summary = looked_at(tmp_path / "s")
    assert summary.failure is not None
    assert said in summary.tables[0].markdown()


def test_the_tokenizer_of_another_model_is_named(world, tmp_path):
    other = byte_level_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|pad|>")
    save_model(tiny_llama(len(other)), other, tmp_path / "m")
    summary = looked_at(world / "scores", model=tmp_path / "m")
    assert summary.failure is not None
    assert "is not that of the model" in summary.tables[0].markdown()


def test_others_open_the_same_folder(world):
    import duckdb
    import pandas
    import polars
    from datasets import load_dataset

    folder = world / "scores"
    files = f"{folder}/*.parquet"
    expected = [row.scores.chosen.tolist() for row in open_scores(folder).rows()]
    assert [row.tolist() for row in pandas.read_parquet(sorted(folder.glob("*.parquet")))["chosen_scores"]] == expected
    assert polars.read_parquet(files)["chosen_scores"].to_list() == expected
    query = f"select chosen_scores from '{files}' order by pair_id"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == expected
    assert load_dataset("parquet", data_files=files, split="train")["chosen_scores"][:] == expected
