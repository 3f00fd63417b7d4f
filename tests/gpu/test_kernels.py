"""MuJoCo Warp's kernels for our models compile for a GPU: NVIDIA's compiler comes with Warp and needs no GPU itself."""

from unittest import mock

import pytest

import envs


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_every_kernel_of_a_step_and_a_reset_compiles(architecture, tmp_path):
    wp = pytest.importorskip("warp")
    pytest.importorskip("mujoco_warp")
    modules = set()

    def noting(launch):
        def noted(kernel, *args, **kwargs):
            modules.add(kernel.module)
            return launch(kernel, *args, **kwargs)

        return noted

    with mock.patch.multiple(wp, launch=noting(wp.launch), launch_tiled=noting(wp.launch_tiled)):
        for name in ("halfcheetah-vel", "halfcheetah-vel@maml2017"):
            family = envs.make(name)
            family.batch(family.sample_tasks(1), 1, "cuda")
    assert len(modules) > 30
    for number, module in enumerate(modules):
        (binary,) = wp.compile_aot_module(module, arch=architecture, module_dir=tmp_path / str(number), use_ptx=False)
        assert binary.stat().st_size > 1000
