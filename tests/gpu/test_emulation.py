"""The emulated device refuses what a real one refuses, and what a real one would silently get wrong."""

import contextlib

import pytest
import torch
from emulated_graphs import CUDAGraph

import envs
from envs.batched_env import BatchedEnv
from metarl.collect import collect
from metarl.functional import initial_params
from metarl.noise import DeviceNoise
from metarl.ops.tree import expand_tasks
from metarl.policies import GaussianMLPPolicy


@pytest.fixture(autouse=True)
def only_emulated(device):
    if device != "emulated":
        pytest.skip("about the emulation")


def captured(function):
    """`function` as a graph, captured as a program does it."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        function()
    return graph


def test_numbers_and_derivatives_are_the_cpus():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))

    def second(x):
        x = x.detach().requires_grad_()
        first = torch.autograd.grad(x.sin().prod(-1).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x)[0]

    there = second(x.cuda())
    assert there.device == torch.device("cuda", 0) and there.is_cuda
    torch.testing.assert_close(there.cpu(), second(x))
    assert torch.zeros(2, device="cuda").new_ones(3).is_cuda and torch.tensor([1], device="cuda").tolist() == [1]


def test_tensors_of_two_devices_do_not_meet():
    x, y = torch.ones(3, device="cuda"), torch.ones(3)
    for mixed in (lambda: x + y, lambda: y + x, lambda: y.add_(x), lambda: torch.where(y > 0, x, x)):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert torch.equal((x + torch.tensor(2.0)).cpu(), torch.full((3,), 3.0)), "a single number may come from the CPU"


WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: x.copy_(torch.ones(3)),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: torch.nonzero(x),
    "comparison": lambda x: torch.allclose(x, x),
    "counts": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64, device="cuda")),
    "waiting": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_the_host_must_wait_for_is_refused_in_a_capture_and_on_request(what):
    x = torch.ones(3, device="cuda")
    if what != "waiting":  # which is no secret
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchronizing"):
                WAITS[what](x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    WAITS[what](x)
    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="previous error during capture") as error:
        captured(lambda: WAITS[what](x))
    assert "not permitted when stream is capturing" in str(error.value.__context__)
    torch.cuda.set_stream(stream)


def test_a_graph_computes_when_it_is_replayed_and_not_before():
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    made = []

    def step():
        made.append(x * 2)
        total.add_(made[-1])

    graph = captured(step)
    assert torch.equal(total.cpu(), torch.zeros(3)) and made[-1].cpu().isnan().all()
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
    assert torch.equal(total.cpu(), torch.full((3,), 12.0)) and torch.equal(made[0].cpu(), torch.full((3,), 10.0))
    assert len(made) == 1, "what Python does is not part of it"


def test_a_graph_reads_its_views_where_they_lie():
    x, out = torch.arange(6.0, device="cuda").reshape(2, 3), torch.zeros(2, device="cuda")
    graph = captured(lambda: out.copy_(x[:, 1] + 1))
    graph.replay()
    assert out.tolist() == [2.0, 5.0]


def test_a_graph_does_not_keep_what_it_was_captured_on():
    for freed in ("read", "written"):
        memory = {name: torch.ones(3, device="cuda") for name in ("read", "written")}
        graph = captured(lambda memory=memory: memory["written"].copy_(memory["read"]))
        graph.replay()
        memory[freed] = torch.zeros(3, device="cuda")
        with pytest.raises(RuntimeError, match="freed"):
            graph.replay()
    with pytest.raises(RuntimeError, match="without a preceding"):
        CUDAGraph().replay()


def test_streams_are_ordered_only_by_waiting():
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match=r"Race.*reads"), torch.cuda.stream(side):
        x + 1
    side.wait_stream(main)
    with torch.cuda.stream(side):
        y = x + 1
    with pytest.raises(RuntimeError, match=r"Race.*overwrites"):
        x.zero_()
    with pytest.raises(RuntimeError, match=r"Race.*reads"):
        y + 1
    torch.cuda.synchronize()
    x.zero_()
    assert (y + 1).tolist() == [3.0, 3.0, 3.0]


def set_up(name):
    family = envs.make(name)
    env = family.batch(family.sample_tasks(2), 3, "cuda")
    policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, (4,))
    params = {n: v.to("cuda") for n, v in expand_tasks(initial_params(policy), 2).items()}
    return env, lambda: collect(env, policy, params, DeviceNoise((0,), 2, env.device))


def test_tasks_that_move_to_other_memory_are_noticed(monkeypatch):
    """A defect put into our own code: the graph would go on reading the memory of the old tasks."""
    env, run = set_up("navigation-2d")
    run()

    def rebind(self, tasks):
        self._lane_task = tasks.to(self._lane_task).repeat_interleave(self.episodes_per_task, dim=0)

    monkeypatch.setattr(BatchedEnv, "set_tasks", rebind)
    env.set_tasks(env.tasks + 1)
    with pytest.raises(RuntimeError, match="freed"):
        run()


def test_physics_that_does_not_wait_is_noticed(monkeypatch):
    """Likewise: Warp's stream beside torch's, neither waiting for the other."""
    wp = pytest.importorskip("warp")
    mujoco_warp = pytest.importorskip("envs.physics.mujoco_warp")

    @contextlib.contextmanager
    def unordered(self):
        with wp.ScopedDevice(self._warp_device), wp.ScopedStream(self._warp_stream), torch.cuda.stream(self._stream):
            yield

    monkeypatch.setattr(mujoco_warp.MujocoWarpSimulator, "_ordered", unordered)
    with pytest.raises(RuntimeError, match="Race"):
        set_up("halfcheetah-vel")


def test_physics_that_warp_does_not_know_to_be_captured_is_noticed(monkeypatch):
    """Likewise: Warp would launch on its own stream at once, and the graph hold no physics."""
    mujoco_warp = pytest.importorskip("envs.physics.mujoco_warp")
    monkeypatch.setattr(mujoco_warp.MujocoWarpSimulator, "capturing", lambda self: contextlib.nullcontext())
    _, run = set_up("halfcheetah-vel")
    with pytest.warns(UserWarning, match="Warp is on another stream"):
        run()
