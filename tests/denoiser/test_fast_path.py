"""The fast path against diffusers' own UNet: values, gradients, precision, operations."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dcr_hf import FrozenDenoiser
from dcr_hf.denoiser.fast_path import begin, finish, install, why_not_exact
from helpers.tiny_models import CONDITION_WIDTH, save_stable_diffusion

BATCH, CONDITIONS = 3, 4


LAYOUTS = {
    "1": {"version": 1},
    "2": {"version": 2},
    # Without tokens to attend to, and with: SD-XL's own is without.
    "xl": {"version": "xl"},
    "xl-encoded": {"version": "xl", "force_zeros_for_empty_prompt": False},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request, tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp(f"sd-{request.param}"), **LAYOUTS[request.param])


def inputs(side):
    generator = torch.Generator().manual_seed(side)
    noisy = torch.randn(BATCH, 4, side, side, generator=generator).bfloat16().float()
    timesteps = torch.randint(1000, (BATCH,), generator=generator)
    return noisy, timesteps, torch.randn(CONDITIONS, CONDITION_WIDTH, generator=generator)


def token_wise(conditions):
    return conditions[:, None].expand(-1, 77, -1)


def value_and_gradient(denoiser, side, plain):
    noisy, timesteps, conditions = inputs(side)
    conditions.requires_grad_()
    predictions = denoiser.predict_pairs(noisy, timesteps, token_wise(conditions) if plain else conditions)
    weights = torch.randn(predictions.shape, generator=torch.Generator().manual_seed(0))
    return predictions.detach(), torch.autograd.grad((predictions * weights).sum(), conditions)[0]


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_the_plain_path_is_the_installed_unet(folder):
    untouched = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    denoiser = FrozenDenoiser.from_pretrained(str(folder))
    noisy, timesteps, _ = inputs(8)
    tokens = torch.randn(BATCH, 77, CONDITION_WIDTH, generator=torch.Generator().manual_seed(3))
    found = denoiser.predict(noisy, timesteps, tokens)
    prompt, added = denoiser.empty_prompt, denoiser._added(noisy)
    with torch.no_grad():
        expected = untouched(noisy, timesteps, prompt + tokens, added_cond_kwargs=added).sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert distance(found, denoiser.predict(noisy, timesteps, tokens[:, :1].expand(-1, 77, -1))) > 1e-3


@pytest.mark.parametrize(("side", "chunk"), [(7, 0), (7, 5), (8, 5), (28, 0), (42, 5)])
def test_fast_equals_plain_in_float32(folder, side, chunk):
    denoiser = FrozenDenoiser.from_pretrained(str(folder), pair_chunk_size=chunk)
    fast, fast_gradient = value_and_gradient(denoiser, side, plain=False)
    plain, plain_gradient = value_and_gradient(denoiser, side, plain=True)
    assert distance(fast, plain) < 1e-5
    assert distance(fast_gradient, plain_gradient) < 1e-5
    # And both depend on the condition: without its biases every condition would give the same prediction.
    assert distance(fast[:, 0], fast[:, 1]) > 1e-3


@pytest.mark.parametrize("folder", ["2", "xl"], indirect=True)
def test_fast_is_as_close_to_float32_as_plain_in_bfloat16(folder):
    """bfloat16 keeps 8 bits: each path is about 1e-2 from float32, and no two of its orders of operations agree to
    less than that. The fast path must not be worse than the plain one."""
    half = FrozenDenoiser.from_pretrained(str(folder), dtype=torch.bfloat16)
    pooled = None if half.pooled_prompt is None else half.pooled_prompt.float()
    unet, prompt = copy.deepcopy(half.unet).float(), half.empty_prompt.float()
    exact = FrozenDenoiser(unet, half.vae, half.scheduler, prompt, pooled_prompt=pooled)
    for index, limit in enumerate([0.02, 0.04]):
        expected = value_and_gradient(exact, 28, plain=True)[index]
        fast, plain = (distance(value_and_gradient(half, 28, path)[index], expected) for path in (False, True))
        assert fast < 1.25 * plain
        assert plain < limit


@pytest.mark.parametrize("folder", ["2", "xl"], indirect=True)
def test_autocast_does_not_reach_the_denoiser(folder):
    denoiser = FrozenDenoiser.from_pretrained(str(folder), pair_chunk_size=5)
    noisy, timesteps, conditions = inputs(8)
    results = []
    for active in (False, True):
        leaf = conditions.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=active):
            predictions = denoiser.predict_pairs(noisy, timesteps, leaf)
        results.append((predictions, torch.autograd.grad(predictions.square().sum(), leaf)[0]))
    for without, under in zip(*results, strict=True):
        assert torch.equal(without, under)


@pytest.mark.parametrize("folder", ["2", "xl"], indirect=True)
def test_compiled_chunks_are_the_same_and_one_graph_each_way(folder):
    denoiser = FrozenDenoiser.from_pretrained(str(folder), pair_chunk_size=5)  # 12 pairs: the last chunk has two
    expected, expected_gradient = value_and_gradient(denoiser, 8, plain=False)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    denoiser.compile_unet(backend=backend)
    found, gradient = value_and_gradient(denoiser, 8, plain=False)
    assert distance(found, expected) < 1e-5 and distance(gradient, expected_gradient) < 1e-5
    # One graph that leads back and one that does not, each for chunks of five, however many chunks there are.
    assert len(graphs) == 2


def test_the_memory_probe_compiles_nothing(folder):
    denoiser = FrozenDenoiser.from_pretrained(str(folder), pair_chunk_size="auto")
    graphs = []
    torch._dynamo.reset()
    denoiser.compile_unet(backend=lambda graph, example_inputs: graphs.append(graph) or graph.forward)
    value_and_gradient(denoiser, 8, plain=False)
    assert len(graphs) == 1  # all pairs at once, in a graph that leads back


@pytest.mark.parametrize(
    "odd",
    [{"only_cross_attention": True}, {"mid_block_type": None}, {"center_input_sample": True}],
    ids=lambda odd: next(iter(odd)),
)
def test_elsewhere_all_conditions_take_the_plain_path(tmp_path, odd, caplog):
    """Tokens in what should be self-attention; no middle, as in distilled models; a step that the walk leaves out."""
    loaded = FrozenDenoiser.from_pretrained(str(save_stable_diffusion(tmp_path)))
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(dict(loaded.unet.config) | odd).eval()
    untouched = copy.deepcopy(unet)
    denoiser = FrozenDenoiser(unet, loaded.vae, loaded.scheduler, loaded.empty_prompt, pair_chunk_size=5)
    assert denoiser.bias_matrix is None and next(iter(odd)) in caplog.text
    noisy, timesteps, conditions = inputs(8)
    found, gradient = value_and_gradient(denoiser, 8, plain=False)
    with torch.no_grad():
        for number, condition in enumerate(conditions):
            tokens = (loaded.empty_prompt + condition).expand(BATCH, -1, -1)
            expected = untouched(noisy, timesteps, tokens).sample
            torch.testing.assert_close(found[:, number], expected, rtol=1e-4, atol=1e-5)
    assert distance(gradient, value_and_gradient(denoiser, 8, plain=True)[1]) < 1e-5


def test_the_real_layouts_are_exact_and_what_makes_others_not_is_told():
    config = dict(UNet2DConditionModel(block_out_channels=(32,) * 4, cross_attention_dim=8).config)
    assert why_not_exact(config) is None
    assert why_not_exact(config | {"mid_block_type": None}) == "mid_block_type None"
    simple = config | {"down_block_types": ("SimpleCrossAttnDownBlock2D",) * 4}
    assert "down_block_types" in why_not_exact(simple) and "no cross-attention on the way" in why_not_exact(simple)


def operations(function, *args):
    # Attention as plain matrix products, which the counter knows on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = function(*args)
        forward = counter.get_total_flops()
        outputs.sum().backward()
    return forward, counter.get_total_flops()


def test_operations_saved_on_sd21():
    """17 conditions of a latent at 224 pixels through SD 2.1's own layout; on the meta device nothing is computed."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        ).requires_grad_(False)
        width = len(install(unet, torch.zeros(1, 77, 1024)))
        latent, timestep = torch.zeros(1, 4, 28, 28), torch.zeros(1, dtype=torch.long)
        rows = torch.zeros(17, dtype=torch.long)
        tokens, biases = torch.zeros(17, 77, 1024, requires_grad=True), torch.zeros(17, width, requires_grad=True)
        latents, timesteps = latent.expand(17, -1, -1, -1), timestep.expand(17)
    plain = operations(lambda c: unet(latents, timesteps, c).sample, tokens)
    constant_keys = operations(lambda c: unet(latents, timesteps, c).sample, biases)
    fast = operations(lambda c: finish(unet, begin(unet, latent, timestep, width).of(rows), c), biases)
    assert width == 12480
    assert constant_keys[0] < (1 - 0.025) * plain[0]
    assert fast[0] < (1 - 0.06) * plain[0]
    # The backward pass of the plain path has to go through the projections to keys and values as well.
    assert fast[1] < (1 - 0.045) * plain[1]
