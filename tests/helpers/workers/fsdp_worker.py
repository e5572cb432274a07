"""Run by torchrun on two processes: a ConditionModel in FSDP2's shards against the same model whole."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.stages import projector_stage


def build(folder: str):
    torch.manual_seed(0)
    model = projector_stage(ImageEncoder.from_pretrained(folder), 32, seed=0, patch_keep_ratio=0.25)
    model.encoder.add_lora(rank=4, alpha=4, dropout=0.0)
    return model


def main(folder: str, output: str) -> None:
    dist.init_process_group("gloo")
    whole, sharded = build(folder), build(folder)
    units = [module for module in sharded.modules() if type(module).__name__ in sharded._no_split_modules]
    for unit in [*units, sharded]:
        fully_shard(unit)
    torch.manual_seed(dist.get_rank())
    images = torch.rand(4, 3, 32, 32)
    for model in (whole, sharded):
        torch.manual_seed(dist.get_rank())  # the same patches
        encoded = model(images, originals=2)
        of_denoiser = encoded.conditions.square().mean() + encoded.tokens.square().mean()
        (of_denoiser + (encoded.embeddings[:2] * encoded.originals).sum()).backward()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_model_state_dict(sharded, options=options)
    for (name, expected), found in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None), name
        if expected.grad is not None:
            dist.all_reduce(expected.grad)
            torch.testing.assert_close(found.grad.full_tensor(), expected.grad / dist.get_world_size())
    if dist.get_rank() == 0:
        assert all(torch.equal(gathered[name], tensor) for name, tensor in whole.state_dict().items())
        sharded.save_trained(output, gathered)
        whole.save_trained(f"{output}-whole")
        for file in ("adapter_model.safetensors", "projector/model.safetensors"):
            found, expected = load_file(Path(output) / file), load_file(Path(f"{output}-whole") / file)
            assert found.keys() == expected.keys() and len(found) > 3
            assert all(torch.equal(found[name], expected[name]) for name in found)
        print(f"sharded {len(units)} layers")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
