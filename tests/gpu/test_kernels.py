"""MuJoCo Warp's kernels for our models compile for a GPU: NVIDIA's compiler comes with Warp and needs no GPU itself."""

from unittest import mock

import pytest

import envs


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_every_kernel_of_a_step_and_a_reset_compiles(architecture, tmp_path):
    wp = pytest.importorskip("warp")
    mjw = pytest.importorskip("mujoco_warp")
    launched = set()

    def noting(launch, usual_block_dim):
        def noted(kernel, *args, **kwargs):
            launched.add((kernel.module, kwargs.get("block_dim", usual_block_dim)))
            return launch(kernel, *args, **kwargs)

        return noted

    with mock.patch.multiple(wp, launch=noting(wp.launch, 256), launch_tiled=noting(wp.launch_tiled, 256)):
        for name in ("halfcheetah-vel", "halfcheetah-vel@maml2017"):
            family = envs.make(name)
            simulator = family.batch(family.sample_tasks(1), 1, "cuda").simulator
        mjw.set_const(simulator._warp_model, simulator._data)
    assert len(launched) > 40 and len({block_dim for _, block_dim in launched}) > 2
    for number, (module, block_dim) in enumerate(launched):
        with mock.patch.dict(module.options, block_dim=block_dim):  # tiles and shared memory depend on it
            (binary,) = wp.compile_aot_module(
                module, arch=architecture, module_dir=tmp_path / str(number), use_ptx=False
            )
        assert binary.stat().st_size > 1000
