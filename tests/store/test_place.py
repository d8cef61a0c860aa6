"""The same run on a folder of this machine and on an object store: moto's S3, served on 127.0.0.1."""

import errno
import os

import boto3
import pytest
from moto.server import ThreadedMotoServer

from stages import inspect
from stages.configs import InspectConfig, is_remote
from stages.errors import SepoError
from stages.reporting import Quiet
from stages.store.manifest import Input
from stages.store.place import Place, place_of, short_names
from stages.store.run import open_run
from stages.store.scores import open_scores
from tests.world import run_policy, run_score


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a local S3 server, as the environment of a cluster would name it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="bucket")
        client.server = server._server
        yield client
    server.stop()


def keys(client, prefix):
    found = client.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    # pyarrow marks a folder in which it removed a file by an empty object of the folder's name.
    return {item["Key"].removeprefix(prefix) for item in found} - {""}


def body(client, key):
    return client.get_object(Bucket="bucket", Key=key)["Body"].read()


def test_scores_on_an_object_store_are_the_local_ones(world, chat_folder, bucket, tmp_path):
    run_score(world, output_dir="s3://bucket/runs/scores")
    assert keys(bucket, "runs/scores/") == {path.name for path in (world / "scores").iterdir()}
    for shard in (world / "scores").glob("*.parquet"):
        assert body(bucket, f"runs/scores/{shard.name}") == shard.read_bytes()
    assert not run_score(world, output_dir="s3://bucket/runs/scores").fresh
    looks = [InspectConfig(scores=each, json=True) for each in ("s3://bucket/runs/scores", str(world / "scores"))]
    assert inspect.run(looks[0], Quiet()) == inspect.run(looks[1], Quiet())
    run_policy(world, chat_folder, output=tmp_path / "p", scores_dir="s3://bucket/runs/scores")
    assert (tmp_path / "p/model.safetensors").read_bytes() == (world / "policy/model.safetensors").read_bytes()


@pytest.fixture
def requests(bucket, monkeypatch):
    """How the server is asked from now on."""
    found = []
    serve = bucket.server.app
    monkeypatch.setattr(
        bucket.server, "app", lambda environ, start: (found.append(environ["REQUEST_METHOD"]), serve(environ, start))[1]
    )
    return found


def test_a_shard_costs_few_requests(world, bucket, requests):
    """Written: who holds the folder (two), and the shard. Read: its size, and the shard. pyarrow asks for the size."""
    asked = {}
    for folder, shard_size in (("few", 20), ("many", 5)):
        requests.clear()
        run_score(world, output_dir=f"s3://bucket/{folder}", shard_size=shard_size)
        asked[folder] = len(requests)
    assert asked == {"few": 15 + 2 * 3, "many": 15 + 8 * 3}
    requests.clear()
    assert len([*open_scores("s3://bucket/many").rows()]) == 40
    assert len(requests) == 3 + 8 * 2
    requests.clear()
    for worker in ("1/2", "2/2"):
        run_score(world, output_dir="s3://bucket/shared", shard_size=5, worker=worker)
    assert len(requests) == asked["many"] + 21
    assert keys(bucket, "shared/") == keys(bucket, "many/")


def test_what_is_damaged_or_gone_there_is_found_and_made_again(world, bucket):
    run_score(world, output_dir="s3://bucket/damaged")
    whole = body(bucket, "damaged/scores-00001.parquet")
    bucket.put_object(Bucket="bucket", Key="damaged/scores-00001.parquet", Body=whole[:99] + b"?" + whole[100:])
    with pytest.raises(SepoError, match=r"s3://bucket/damaged/scores-00001\.parquet is damaged"):
        list(open_scores("s3://bucket/damaged").rows())
    bucket.delete_object(Bucket="bucket", Key="damaged/scores-00000.parquet")
    with pytest.raises(SepoError, match=r"s3://bucket/damaged lacks scores-00000\.parquet"):
        open_scores("s3://bucket/damaged")
    assert run_score(world, output_dir="s3://bucket/damaged").fresh
    assert body(bucket, "damaged/scores-00001.parquet") == whole
    assert len(list(open_scores("s3://bucket/damaged").rows())) == 40


def test_another_run_there_is_refused_or_replaced(world, bucket):
    run_score(world, output_dir="s3://bucket/twice")
    with pytest.raises(SepoError, match="s3://bucket/twice holds another run: max_length is 128 there and 100 here"):
        run_score(world, output_dir="s3://bucket/twice", max_length=100)
    run_score(world, output_dir="s3://bucket/twice", max_length=100, overwrite=True)
    assert not keys(bucket, ".twice.replaced/")
    assert open_scores("s3://bucket/twice").manifest["settings"]["max_length"] == 100


def test_other_stages_say_that_they_write_here_only(bucket):
    run = open_run("s3://bucket/elsewhere", "train-policy", {}, {"d": Input("d", "h")}, overwrite=False)
    with pytest.raises(SepoError, match="s3://bucket/elsewhere is not a local folder"):
        _ = run.folder


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    with pytest.raises(SepoError, match=r"cannot write s3://none-such/x/manifest\.unfinished\.json"):
        open_run("s3://none-such/x", "score", {}, {}, overwrite=False)


def test_names_never_show_keys():
    place = place_of("s3://key:secret@bucket/a/?region=us-east-1&endpoint_override=127.0.0.1:1&scheme=http")
    assert str(place) == "s3://bucket/a"
    assert place.at("x") == "s3://bucket/a/x"
    assert str(place.replaced()) == "s3://bucket/.a.replaced"
    assert not is_remote("runs/scores")


def test_short_names_tell_places_apart(tmp_path):
    places = [tmp_path / "a/run", tmp_path / "b/run", place_of(tmp_path / "other")]
    assert short_names(places) == [str(tmp_path / "a/run"), str(tmp_path / "b/run"), "other"]


def test_a_uri_of_no_known_system_is_one_line():
    with pytest.raises(SepoError, match="cannot open nowhere://x/y"):
        place_of("nowhere://x/y")


def test_what_is_not_there_is_not_removed_from_a_read_only_disk(tmp_path):
    """Linux refuses before it looks: a finished run there would be refused, of which nothing is to be removed."""

    class ReadOnly:
        def delete_file(self, path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    place = Place("run", ReadOnly(), str(tmp_path), tmp_path)
    place.delete("manifest.unfinished.json")
    (tmp_path / "manifest.json").touch()
    with pytest.raises(SepoError, match=r"^cannot remove run/manifest\.json: Read-only file system$"):
        place.delete("manifest.json")
