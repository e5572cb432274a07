"""What passes by itself is waited for, on every kind of request; what does not is said at once, and by name."""

import pytest
import torch
from safetensors.torch import save_file

from dcr_hf.errors import NotFoundError, UnavailableError, UserError
from dcr_hf.hub import (
    RemoteFile,
    address,
    choose_weights,
    forget_pins,
    hub_id,
    local_folder,
    model_folder,
    patience,
    pin,
)
from dcr_hf.models.headers import read_header
from helpers.hub import Fault

SHARD = bytes(range(256)) * 4000  # more than one chunk
FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"w" * 100_000, "pytorch_model.bin": b"p" * 100_000}


def read_all(hub):
    """A question to the API, a file in the cache, a shard that is read as it comes."""
    hub.add("models", "me/model", FILES)
    hub.add("datasets", "me/data", {"train/0.tar": SHARD})
    folder, _ = model_folder("me/model")
    with RemoteFile(address(pin("--train_data", "me/data", "dataset"), "train/0.tar")) as file:
        shard = file.readall()
    return (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes(), shard


@pytest.mark.parametrize(
    "request_kind",
    ["GET /api/models", "GET /api/datasets", "HEAD .*config", "GET .*model.safetensors", "GET .*0.tar"],
)
@pytest.mark.parametrize("fault", ["503", "429", "reset", "cut", "stall"])
def test_a_fault_that_passes(hub, request_kind, fault):
    if fault in ("cut", "stall") and request_kind.startswith("HEAD"):
        pytest.skip("an answer without a body")
    hub.faults = [Fault(request_kind, fault, times=2 if fault == "503" else 1)]
    assert read_all(hub) == (FILES["config.json"], FILES["model.safetensors"], SHARD)
    assert all(entry.times == 0 for entry in hub.faults)
    assert not hub.requests("pytorch_model")


def test_a_broken_shard_continues_at_the_missing_byte(hub):
    hub.faults = [Fault("GET .*0.tar", "cut", times=3, after=50_000)]
    assert read_all(hub)[2] == SHARD
    assert hub.sent("0.tar") == len(SHARD) and len(hub.requests("GET .*0.tar")) == 4


def test_a_shard_from_a_byte_on(hub):
    hub.add("datasets", "me/data", {"0.tar": SHARD})
    where = address(pin("data", "me/data", "dataset"), "0.tar")
    assert RemoteFile(where, 1_000_000).readall() == SHARD[1_000_000:]
    assert RemoteFile(where, len(SHARD)).readall() == b""
    assert hub.sent("0.tar") == len(SHARD) - 1_000_000


def test_waits_grow_and_the_hub_s_own_is_honoured(hub, monkeypatch):
    pauses = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    monkeypatch.setattr(patience, "FIRST_WAIT", 1.0)
    hub.add("models", "me/model", FILES)
    hub.faults = [Fault("/api/models", "503", times=3), Fault("/api/models", "429", retry_after=7)]
    pin("--encoder", "me/model")
    assert len(pauses) == 4
    assert 0.75 <= pauses[0] <= 1.25 and 1.5 <= pauses[1] <= 2.5 and 3 <= pauses[2] <= 5 and pauses[3] >= 7


def test_after_the_patience_it_is_said_who_was_asked_for_what(hub, monkeypatch):
    hub.add("models", "me/model", FILES)
    hub.faults = [Fault("api", "503", times=100)]
    monkeypatch.setenv(patience.PATIENCE_VARIABLE, "0.2")
    with pytest.raises(UnavailableError, match=r"--encoder 'me/model': the hub was asked for 0 s .*503 Service"):
        pin("--encoder", "me/model")


def test_what_is_not_there(hub):
    hub.add("models", "me/model", FILES)
    with pytest.raises(NotFoundError, match="--encoder 'a/b' is neither a folder here nor a repository on the hub"):
        pin("--encoder", "a/b")
    with pytest.raises(NotFoundError, match="no branch, tag or commit 'v2'"):
        pin("--encoder", "me/model@v2")
    with pytest.raises(NotFoundError, match=r"model '\./me' is neither a folder"):
        local_folder("./me")
    hub.gated.add("me/model")
    with pytest.raises(UserError, match=r"encoder 'me/model': config.json: access to me/model is restricted.*log in"):
        local_folder("me/model", what="encoder")


def test_nothing_answers_at_all(hub, monkeypatch):
    """A mistyped path is said in seconds; an id that was in the cache is used."""
    commit = hub.add("models", "me/model", FILES)
    folder, _ = model_folder("me/model")
    forget_pins()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("dcr_hf.hub.pins.WITHOUT_CONNECTION", 0.1)
    monkeypatch.setattr(patience, "_reached", False)
    with pytest.raises(NotFoundError, match=r"--encoder 'a/b' is no folder here and not in the cache.*ConnectError"):
        pin("--encoder", "a/b")
    assert pin("--encoder", "me/model").commit == commit
    assert model_folder("me/model")[0] == folder


def test_offline(hub, monkeypatch):
    hub.add("models", "me/model", FILES)
    local_folder("me/model", ["config.json"])
    forget_pins()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(hub.log)
    assert (local_folder("me/model", ["config.json"]) / "config.json").is_file()
    with pytest.raises(NotFoundError, match="lacks weights"):
        model_folder("me/model")
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE is set"):
        local_folder("me/other")
    assert len(hub.log) == before


def test_a_revision_is_one_commit_for_the_whole_process(hub):
    first = hub.add("models", "me/model", FILES)
    tagged = hub.add("models", "me/model", {**FILES, "config.json": b"tagged"}, branch="v1")
    assert pin("e", "me/model").commit == first and pin("e", "me/model@v1").commit == tagged
    second = hub.add("models", "me/model", {**FILES, "config.json": b"moved"})
    hub.repositories["models", "me/model"]["old"] = dict(FILES)  # the hub keeps what was
    assert (local_folder("me/model") / "config.json").read_bytes() == FILES["config.json"]
    assert (local_folder("me/model@v1") / "config.json").read_bytes() == b"tagged"
    forget_pins()
    assert pin("e", "me/model").commit == second
    forget_pins()
    again = pin("e", "me/model", commit=first)
    assert again.commit == first and again.moved_to == second
    forget_pins()
    del hub.repositories["models", "me/model"]["old"]
    with pytest.raises(UserError, match=f"began with commit {first} of me/model, which is no longer on the hub"):
        pin("e", "me/model", commit=first)


def test_what_is_warm_is_asked_for_once(hub):
    read_all(hub)
    forget_pins()
    hub.log.clear()
    model_folder("me/model")
    assert [entry[:2] for entry in hub.log] == [("GET", "/api/models/me/model/revision/main")]
    model_folder("me/model")
    assert len(hub.log) == 1


def test_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("a/b") == ("a/b", "main") and hub_id("a/b@refs/pr/1") == ("a/b", "refs/pr/1")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert hub_id("a/b") is None  # a folder comes first
    assert all(hub_id(given) is None for given in ("x", "./a/c", "/a/c", "a/b/c", "a b/c", "../c"))


@pytest.mark.parametrize(
    ("names", "part", "chosen", "variant"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"], "", ["model.safetensors"], None),
        (["pytorch_model.bin", "model.fp16.safetensors", "tf_model.h5"], "", ["pytorch_model.bin"], None),
        (["model.fp16.safetensors"], "", ["model.fp16.safetensors"], "fp16"),
        (
            [
                "consolidated.safetensors",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model-00001-of-00002.fp16.safetensors",
            ],
            "",
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            None,
        ),
        (
            ["unet/diffusion_pytorch_model.bin", "model.safetensors"],
            "unet",
            ["unet/diffusion_pytorch_model.bin"],
            None,
        ),
        (
            [
                "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
                "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            ],
            "unet",
            [
                "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
                "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            ],
            "fp16",
        ),
    ],
)
def test_one_format_of_one_precision(names, part, chosen, variant):
    weights = choose_weights(names, part)
    assert list(weights.files) == chosen and weights.variant == variant
    assert weights.safetensors == chosen[-1].endswith(".safetensors")
    assert choose_weights(["config.json", "consolidated.safetensors"]) is None


def test_a_header_is_read_without_the_weights(hub, tmp_path):
    save_file({"a": torch.zeros(100_000, dtype=torch.float16), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(10), "b": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    hub.add("models", "me/model", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    header = read_header("me/model", "language model")
    assert header.names == {"a", "b"} and header.dtype == torch.float16
    assert hub.sent("model.safetensors") <= 100_001
    local = read_header(str(tmp_path), "language model")
    assert local == header
    (tmp_path / "model.safetensors").unlink()
    assert read_header(str(tmp_path), "m").dtype == torch.float32
    (tmp_path / "pytorch_model.bin").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"pytorch_model.bin is no file of tensors"):
        read_header(str(tmp_path), "m")
