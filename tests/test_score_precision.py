"""What `score` takes over from `train-oracle`, its named precisions, and the noise it measures of itself."""

import json
import shutil

import numpy as np
import pytest
import torch

from stages import check
from stages.configs import CheckConfig
from stages.devices.precision import products, weights_of
from stages.errors import SepoError
from stages.method.selection import CUT_TIES
from stages.reporting import Quiet
from stages.store.logps import FILE
from stages.store.manifest import Input, identity_of
from stages.store.place import place_of
from stages.store.scores import open_scores
from stages.store.shards import own_shard, read_shard, write_shard
from tests.conftest import word_rows, write_lines
from tests.world import run_policy, run_score


class Titles(Quiet):
    """Remembers which work was done, and how much of it."""

    def __init__(self):
        super().__init__()
        self.done = {}
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def task(self, title, total, unit):
        self.done[title] = total
        return super().task(title, total, unit)


def all_scores(folder):
    rows = list(open_scores(folder).rows())
    return np.concatenate([side for row in rows for side in row.scores])


def noise_of(folder):
    return json.loads((folder / "manifest.json").read_text())["results"]["noise"]


@pytest.fixture
def oracle(world, tmp_path):
    return shutil.copytree(world / "oracle", tmp_path / "oracle")


def test_known_reference_logps_are_taken_and_not_computed(world, oracle, tmp_path, monkeypatch):
    """Of 40 pairs all are known; with a damaged reference the scores still come out, for it is never loaded."""
    from stages.models import loading

    loaded = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda folder, **how: loaded.append(folder.name) or load(folder, **how))
    run_score(world, output=tmp_path / "s", oracle=str(oracle))
    assert loaded == ["oracle"]
    np.testing.assert_allclose(all_scores(tmp_path / "s"), all_scores(world / "scores"), atol=2e-5)


def test_pairs_that_are_not_known_are_computed_beside_those_that_are(world, oracle, tmp_path):
    rows = [*word_rows(10), *word_rows(10, seed=5)]
    dataset = write_lines(tmp_path / "p.jsonl", rows)
    run_score(world, output=tmp_path / "a", oracle=str(oracle), dataset=dataset)
    (oracle / FILE).unlink()
    run_score(world, output=tmp_path / "b", oracle=str(oracle), dataset=dataset)
    np.testing.assert_allclose(all_scores(tmp_path / "a"), all_scores(tmp_path / "b"), atol=2e-5)


def old_run(folder):
    """As an earlier version would have left it: with the log-probs among its inputs, and in the fingerprint."""
    found = json.loads((folder / "manifest.json").read_text())
    inputs = {name: Input(name, value) for name, value in found["inputs"].items()}
    inputs["reference log-probs"] = Input("reference-logps.parquet", "sha256:old")
    identity = identity_of("score", found["settings"], inputs, {})
    rows = {name: list(read_shard(place_of(folder), name, found["fingerprint"])) for name in found["files"]}
    vocabulary = found["tokenizer"]["vocabulary"]
    for name, some in rows.items():
        write_shard(place_of(folder), name, some, identity["fingerprint"], vocabulary)
    shards = {name: own_shard(place_of(folder), name, identity["fingerprint"]).checksum for name in rows}
    (folder / "manifest.json").write_text(json.dumps(found | identity | {"shards": shards}))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_known_logps_that_are_lost_make_no_other_run(world, oracle, tmp_path, old, half):
    """A cache is no input: finished stays finished, and half finished goes on, to the same numbers but for rounding."""
    folder = tmp_path / "s"
    run_score(world, output=folder, oracle=str(oracle))
    whole = all_scores(folder)
    if old:
        old_run(folder)
    (oracle / FILE).unlink()
    kept = (folder / "scores-00000.parquet").read_bytes()
    if half:
        (folder / "scores-00001.parquet").unlink()
    assert run_score(world, output=folder, oracle=str(oracle)).fresh == half
    assert (folder / "scores-00000.parquet").read_bytes() == kept
    np.testing.assert_allclose(all_scores(folder), whole, atol=2e-5)
    assert not run_score(world, output=folder, oracle=str(oracle)).fresh


def test_known_logps_of_another_reference_are_left_alone(world, oracle, tmp_path):
    from stages.models.folders import load_model, load_tokenizer, save_model

    model = load_model(oracle / "reference", trust_remote_code=False)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    tokenizer = load_tokenizer(oracle / "reference", trust_remote_code=False)
    save_model(model, tokenizer, oracle / "reference")
    # As an earlier version left it, without checksums: else it is refused for what was changed in it.
    found = json.loads((oracle / "manifest.json").read_text())
    (oracle / "manifest.json").write_text(json.dumps({k: v for k, v in found.items() if "checksum" not in k}))
    run_score(world, output=tmp_path / "s", oracle=str(oracle))
    assert not np.allclose(all_scores(tmp_path / "s"), all_scores(world / "scores"), atol=1e-2)


def test_bfloat16_is_another_result_with_more_noise(world, tmp_path):
    run_score(world, output=tmp_path / "b", precision="bfloat16", noise_check=1.0)
    run_score(world, output=tmp_path / "f", noise_check=1.0)
    ours, exact = noise_of(tmp_path / "b"), noise_of(tmp_path / "f")
    assert exact["mean"] < 1e-5
    assert exact["agreement"] == {"0.1": 1.0, "0.3": 1.0}
    assert ours["mean"] > 100 * exact["mean"]
    difference = np.abs(all_scores(tmp_path / "b") - all_scores(world / "scores"))
    assert ours["mean"] == pytest.approx(difference.mean(), rel=0.05)
    assert ours["p99"] == pytest.approx(np.quantile(difference, 0.99), rel=0.05)
    assert ours["pairs"] == 40


def test_the_noise_check_is_not_fooled_by_the_fast_way(world, tmp_path, monkeypatch):
    """A mask that lets rejected tokens see ahead, and the next pair's: the exact scores must not share the fault."""
    from stages.logprobs.attention import Layout

    monkeypatch.setattr(
        Layout, "causal_mask", lambda self, prompt, queries, keys, window, dtype: torch.zeros(queries, keys)
    )
    monkeypatch.setattr("stages.logprobs.trial.TOLERANCE", {torch.float32: 1e9})
    # Apart, so that no known log-prob of the reference is right whatever the mask.
    apart = {f"{name}_model": str(world / "oracle" / name) for name in ("oracle", "reference")}
    run_score(world, output=tmp_path / "s", oracle=None, noise_check=1.0, **apart)
    assert noise_of(tmp_path / "s")["mean"] > 1e-2


def test_exact_scores_have_float32_products_whatever_the_recipe(world, tmp_path, monkeypatch):
    from stages.models import scorer

    seen = []
    read = scorer.response_logps
    monkeypatch.setattr(
        scorer, "response_logps", lambda *a, **k: seen.append(torch.get_float32_matmul_precision()) or read(*a, **k)
    )
    run_score(world, output=tmp_path / "s", precision="medium", noise_check=0.01)
    assert set(seen[:3]) == {"medium"}
    assert seen[3:] == ["highest", "highest"]


def test_known_logps_are_for_float32_alone(world, tmp_path):
    titles = Titles()
    run_score(world, titles, output=tmp_path / "s", precision="bfloat16")
    assert not any("are known" in line for line in titles.lines)
    titles = Titles()
    run_score(world, titles, output=tmp_path / "t")
    assert any("log-probs of 40 pairs are known" in line for line in titles.lines)


def test_a_selection_that_rounding_decides_is_warned_of(world, tmp_path):
    """An oracle that is its reference: in bfloat16 the scores are nothing but noise... which is exactly 0 here, so the
    oracle is moved by less than bfloat16 can tell."""
    from stages.models.folders import load_model, load_tokenizer, save_model

    model = load_model(world / "oracle/reference", trust_remote_code=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-4 * torch.randn_like(parameter))
    save_model(model, load_tokenizer(world / "oracle/reference", trust_remote_code=False), tmp_path / "o")
    models = {"oracle": None, "oracle_model": str(tmp_path / "o"), "reference_model": str(world / "oracle/reference")}
    reporter = Quiet()
    run_score(world, reporter, output=tmp_path / "s", precision="bfloat16", noise_check=0.01, **models)
    assert any("rounding decides about tokens" in warning for warning in reporter.warnings)


@pytest.mark.parametrize(("share", "pairs"), [(0.0, None), (0.01, 16), (0.5, 20), (1.0, 40)])
def test_the_noise_check_takes_its_share_and_at_least_16(world, tmp_path, share, pairs):
    run_score(world, output=tmp_path / "s", noise_check=share)
    noise = noise_of(tmp_path / "s")
    assert (noise and noise["pairs"]) == pairs


def test_tf32_is_refused_where_it_would_be_float32(world, tmp_path):
    with pytest.raises(SepoError, match="precision tf32 is for CUDA devices, not for cpu"):
        run_score(world, output=tmp_path / "s", precision="tf32")


def test_products_are_set_and_put_back():
    before = torch.get_float32_matmul_precision()
    with products("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    with products("float32"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before
    assert weights_of("bfloat16") == torch.bfloat16
    assert weights_of("medium") == torch.float32


def test_scores_of_a_model_against_itself_are_warned_of_by_all_who_touch_them(world, chat_folder, tmp_path):
    """In the same words, and where position alone decides it is counted."""
    one = str(world / "oracle/reference")
    ears = [Quiet(), Quiet(), Quiet()]
    run_score(world, ears[0], output=tmp_path / "s", oracle=None, oracle_model=one, reference_model=one)
    check.run(CheckConfig(scores=str(tmp_path / "s")), ears[1])
    summary = run_policy(world, chat_folder, ears[2], scores=tmp_path / "s", output=tmp_path / "p", max_steps=1)
    for ear in ears:
        assert any("oracle and reference are one model" in warning for warning in ear.warnings)
        assert any("every score is 0: a selection by scores follows" in warning for warning in ear.warnings)
    cut = json.loads((tmp_path / "p/manifest.json").read_text())["counts"]["selection"][CUT_TIES]
    assert 70 < cut <= 80
    assert ("of them", f"{cut:,} {CUT_TIES}") in summary.rows
