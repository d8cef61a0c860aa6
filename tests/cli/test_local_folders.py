"""What cannot be written to an object store is refused before anything is read, and nothing lands in a folder `s3:`."""

import pytest

STAGES = {
    "train-oracle": ["--model", "none", "--dataset", "none"],
    "train-policy": ["--model", "none", "--scores", "none"],
    "cut-model": ["--model", "none", "--layers", "2"],
    "extrapolate": ["--model", "none", "--reference-model", "none", "--scale", "2"],
    "make-demo": [],
    "demo-report": ["--demo", "none", "--scores", "none", "--model", "a=none", "--reference", "none"],
    "compare": ["--run", "a=none"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_only_scores_may_go_to_an_object_store(sepo, tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    code, _, err = sepo(stage, *STAGES[stage], "--output-dir", "s3://bucket/run")
    assert code == 1, err
    assert "output_dir must be a folder of this computer" in err
    assert "got 's3://bucket/run'" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["score", "project-scores", "denoise"])
def test_scores_are_not_refused_for_their_place(sepo, stage):
    """What stops them is that there is nothing to read."""
    given = {
        "score": ["--oracle", "none", "--dataset", "none"],
        "project-scores": ["--scores", "none", "--model", "none", "--dataset", "none"],
        "denoise": ["--scores", "none"],
    }
    code, _, err = sepo(stage, *given[stage], "--output-dir", "s3://bucket/run")
    assert code == 1
    assert "output_dir" not in err
