import pytest
import torch

from helpers.programs import TORCHRUN, WORKERS, run_program


@pytest.fixture(scope="module", params=["stage1", "stage2", "joint"])
def two_ranks(request, clip_folder, sd_folder, shards_folder, tmp_path_factory):
    """What each of two gloo processes wrote down of three steps."""
    output = tmp_path_factory.mktemp("ranks")
    worker = WORKERS / "distributed_worker.py"
    done = run_program(*TORCHRUN, worker, clip_folder, sd_folder, shards_folder, output, request.param)
    assert done.returncode == 0, done.stderr
    return [torch.load(output / f"{request.param}-rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_ranks_see_different_images(two_ranks):
    first, second = ({key for batch in record["keys"] for key in batch} for record in two_ranks)
    assert len(first) == len(second) == 12 and not first & second


def test_gradients_agree_after_backward_and_are_the_mean_of_the_ranks_own(two_ranks):
    first, second = two_ranks
    assert len(first["gradients"]) == 3
    for step in range(3):
        for index, (a, b) in enumerate(zip(first["gradients"][step], second["gradients"][step], strict=True)):
            assert torch.equal(a, b)
            own = [record["own_gradients"][step][index] for record in two_ranks]
            torch.testing.assert_close(a, (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-8)
    different = [
        not torch.equal(a, b) for a, b in zip(first["own_gradients"][0], second["own_gradients"][0], strict=True)
    ]
    assert any(different)


def test_weights_stay_equal(two_ranks):
    first, second = two_ranks
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))


def test_logged_metrics_are_those_of_all_ranks(two_ranks):
    first, second = two_ranks
    names = {"loss", "cosine/target", "noise_mse/own", "skipped_images"}
    for a, b in zip(first["log"], second["log"], strict=True):
        assert {name: a[name] for name in names} == pytest.approx({name: b[name] for name in names})
