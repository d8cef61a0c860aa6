"""`sepo denoise`: scores pooled over the data set, in a folder that every later stage reads as any other."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages import denoise
from stages.configs import DenoiseConfig
from stages.errors import SepoError
from stages.method.pooling import pool
from stages.reporting import Quiet
from stages.store.scores import open_scores
from tests.world import manifest, run_policy


def denoised(scores, output, **options):
    denoise.run(DenoiseConfig(scores=str(scores), output_dir=str(output), **options), Quiet())
    return output


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    return denoised(world / "scores", tmp_path_factory.mktemp("denoise") / "d")


def tokens(folder):
    """(id, id before it, score) of every token of every chosen response, then of every rejected one."""
    rows, found = list(open_scores(folder).rows()), []
    for n in (0, 1):
        for row in rows:
            before = int(row.pair.prompt_ids[-1])
            for token, score in zip(row.pair[2 + n].tolist(), row.scores[n].tolist(), strict=True):
                found.append((token, before, score))
                before = token
    return found


def test_scores_are_pooled_over_both_sides_and_all_shards(world, folder):
    assert len(manifest(folder)["files"]) > 1
    types, predecessors, scores = map(np.array, zip(*tokens(world / "scores"), strict=True))
    expected = pool(scores, types, predecessors)
    assert [score for *_, score in tokens(folder)] == pytest.approx(expected.scores_N, abs=1e-6)
    assert manifest(folder)["results"]["contexts"] == pytest.approx(expected.contexts._asdict())


def test_nothing_else_changes_and_measured_scores_stay_beside(world, folder):
    for ours, theirs in zip(open_scores(folder).rows(), open_scores(world / "scores").rows(), strict=True):
        for one, other in zip((*ours.pair[1:], *ours.reference), (*theirs.pair[1:], *theirs.reference), strict=True):
            np.testing.assert_array_equal(one, other)
    for name in manifest(folder)["files"]:
        table, source = pq.read_table(folder / name), pq.read_table(world / "scores" / name)
        for side in ("chosen", "rejected"):
            assert table[f"{side}_raw_scores"].to_pylist() == source[f"{side}_scores"].to_pylist()


def test_by_type_alone_a_token_scores_the_same_everywhere(world, folder, tmp_path):
    found = tokens(denoised(world / "scores", tmp_path / "d", pool="type"))
    assert len({(token, score) for token, _, score in found}) == len({token for token, *_ in found})
    assert [score for *_, score in found] != [score for *_, score in tokens(folder)]


def test_a_policy_finds_the_reference_in_them(world, folder, tmp_path):
    options = {"objective": "regress", "max_steps": 1, "batch_size": 64}
    run_policy(world, world / "oracle/reference", output=tmp_path / "p", scores_dir=str(folder), **options)
    assert not (tmp_path / "p/reference-logps.parquet").exists()
    scores = np.array([score for *_, score in tokens(folder)])
    # Where the policy is still the reference, the loss is the sum of the squares.
    expected = np.square(scores).sum() / manifest(folder)["counts"]["kept"]
    assert manifest(tmp_path / "p")["results"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_scores_of_another_scorer_keep_their_weights(world, tmp_path):
    """They need not say of what they are made, nor have reference log-probs; weights may be of some rows alone."""
    written = manifest(world / "scores")
    kept = {name: written[name] for name in ("format", "stage", "fingerprint", "files", "counts", "tokenizer")}
    (tmp_path / "s").mkdir()
    (tmp_path / "s/manifest.json").write_text(json.dumps(kept))
    weights = []
    for name in written["files"]:
        table = pq.read_table(world / "scores" / name).drop_columns(
            ["chosen_reference_logps", "rejected_reference_logps"]
        )
        for side in ("chosen", "rejected"):
            values = [[0.5] * len(ids) if row else None for row, ids in enumerate(table[f"{side}_ids"].to_pylist())]
            table = table.append_column(f"{side}_weights", [values])
            weights += values
        pq.write_table(table, tmp_path / "s" / name)
    rows = list(open_scores(denoised(tmp_path / "s", tmp_path / "d")).rows())
    assert [row.weights is None for row in rows] == [n % 16 == 0 for n in range(len(rows))]
    assert rows[1].weights.rejected.tolist() == [0.5] * len(rows[1].pair.rejected_ids)
    assert rows[1].reference is None


def test_what_is_denoised_is_not_denoised_again(world, folder, tmp_path):
    with pytest.raises(SepoError, match="is denoised already"):
        denoised(folder, tmp_path / "d")
    before = (folder / "manifest.json").read_bytes()
    denoised(world / "scores", folder)
    assert (folder / "manifest.json").read_bytes() == before
