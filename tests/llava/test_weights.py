"""Reading and writing weights: one name in every layout, a tensor at a time, never more than a shard in memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcr_hf.errors import UserError
from dcr_hf.llava.weights import INDEX, canonical, opened, rewrite, weight_files
from dcr_hf.models.headers import read_header

LAYOUTS = {
    "4.x": (
        "language_model.model.layers.0.mlp.up_proj.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.post_layernorm.bias",
        "multi_modal_projector.linear_1.bias",
    ),
    "5.x in memory": (
        "model.language_model.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
        "model.vision_tower.post_layernorm.bias",
        "model.multi_modal_projector.linear_1.bias",
    ),
    "5.x on disk": (
        "language_model.model.layers.0.mlp.up_proj.weight",
        "language_model.lm_head.weight",
        "vision_tower.post_layernorm.bias",
        "multi_modal_projector.linear_1.bias",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_weight_has_one_name_in_every_layout(layout):
    assert tuple(map(canonical, LAYOUTS[layout])) == (
        "language_model.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
        "vision_tower.post_layernorm.bias",
        "multi_modal_projector.linear_1.bias",
    )


def shards(folder: Path, count: int, numbers: int) -> dict[str, torch.Tensor]:
    tensors = {f"w{number}": torch.randn(numbers) for number in range(count)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"{name}.safetensors", metadata={"format": "pt"})
    index = {name: f"{name}.safetensors" for name in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return tensors


def keep(name, read):
    return {name: read()}


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def test_rewriting_needs_the_memory_of_one_shard_whatever_the_model(tmp_path):
    megabytes = 40  # more than the allocator keeps for itself
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    shards(source, count=4, numbers=megabytes * 2**18)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = peak_bytes()
    new = [lambda n=n: {f"new{n}": torch.ones(megabytes * 2**18)} for n in range(2)]
    rewrite(source, target, keep, new)
    assert peak_bytes() - before < 1.5 * megabytes * 2**20
    assert len(read_header(str(target), "LLaVA").names) == 6


def test_what_is_dropped_is_not_read(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    expected = shards(source, count=3, numbers=4)
    seen = []

    def drop_the_first(name, read):
        seen.append(name)
        return {} if name == "w0" else {name: read()}

    rewrite(source, target, drop_the_first)
    assert seen == ["w0", "w1", "w2"]
    files = [file.name for file in weight_files(target)]
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    found = {name: tensor for file in weight_files(target) for name, tensor in load_file(file).items()}
    assert found.keys() == {"w1", "w2"} and all(torch.equal(found[name], expected[name]) for name in found)
    assert json.loads((target / INDEX).read_text())["metadata"]["total_size"] == 32


def test_pytorchs_own_files_are_read_where_there_are_no_others(tmp_path):
    tensors = {"model.norm.weight": torch.randn(3)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (file,) = weight_files(tmp_path)
    with opened(file) as found:
        assert torch.equal(found["model.norm.weight"](), tensors["model.norm.weight"])
    save_file(tensors, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with (
        pytest.raises(UserError, match="not opened, since they may hold code"),
        opened(tmp_path / "pytorch_model.bin"),
    ):
        pass


def test_a_folder_without_weights_or_with_some_of_them_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        weight_files(tmp_path)
    shards(tmp_path, count=2, numbers=1)
    (tmp_path / "w1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names w1\.safetensors, not found"):
        weight_files(tmp_path)
