"""MuJoCo on CPU threads: `mujoco.batch.Batch` behind `envs.family.Simulator`.

A lane keeps everything an `MjData` would carry from one step to the next, the solver's warm start included, so that it
equals a plain `mujoco.mj_step` loop bit for bit whatever the other lanes do and however many threads run.
"""

# MuJoCo's classes come from compiled modules without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.physics.compile import build_model, needs_newer_mujoco
from envs.physics.model import CONSTANTS_FOLLOW, Derived, MujocoModel

if TYPE_CHECKING:
    from envs.family import State

try:
    from mujoco.batch import Batch
except (ImportError, AttributeError) as error:
    raise needs_newer_mujoco() from error

# The four kinds of divergence are neighbours in MuJoCo's list, which makes reading them a cheap strided view.
_DIVERGED = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADCTRL) + 1)

_OUTPUTS = {"body_position": "xpos", "subtree_com": "subtree_com", "subtree_velocity": "sensordata"}
"""Where MuJoCo has each kind of derived quantity; the velocity only where a sensor asks for it."""


@final
class _Silence:
    """Keeps MuJoCo's warnings off the screen and out of MUJOCO_LOG.TXT while a call of ours runs, on any thread.

    The batch counts them per lane, which is where `failed` reads them. Outside our calls the process's own handler
    stays in charge; overlapping calls of several simulators share one installation.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._previous: object = None

    def forget_other_threads(self) -> None:
        """In a forked child: what was held by threads that exist in the parent alone is let go."""
        if self._depth > 0:
            mujoco.set_mju_user_warning(self._previous)
        self._lock, self._depth = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._previous = mujoco.get_mju_user_warning()
                mujoco.set_mju_user_warning(_ignore)
            self._depth += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                mujoco.set_mju_user_warning(self._previous)


def _ignore(message: str) -> None:
    """The handler of MuJoCo warnings that `_Silence` installs."""


_silent_mujoco = _Silence()
_simulators: weakref.WeakSet[MujocoCpuSimulator] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A batch's threads stay behind in the parent: stepping it, or freeing it, would wait for them for ever."""
    _silent_mujoco.forget_other_threads()
    for simulator in _simulators:
        simulator.leave_batch_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@final
class MujocoCpuSimulator:
    """`num_lanes` worlds of one model. State: `qpos [lane, nq]`, `qvel [lane, nv]` and the model's derived quantities.

    Everything is float64 on the CPU; `envs.physics.model` says which instant the derived quantities belong to.
    A world that diverges (a non-finite or huge position, velocity or acceleration, or a NaN control) is put back to
    its default state by MuJoCo, so its numbers look healthy again: only `failed` tells. Other worlds never notice.

    Args:
        model: The model as its family describes it.
        num_lanes: Number of worlds.
        num_threads: Native threads, the calling one included; more than there are lanes would idle. A forked child gets
            as many of its own and goes on from where the parent was.
    """

    def __init__(self, model: MujocoModel, num_lanes: int, num_threads: int) -> None:
        self.num_lanes = num_lanes
        self.device = torch.device("cpu")
        self.dtype = torch.float64
        self.model = build_model(model)
        self._description = model
        self._num_threads = max(1, min(num_threads, num_lanes))
        self._parents_batch: Batch | None = None
        self._make_batch()
        self.nominal_fields = {name: torch.from_numpy(values[0].copy()) for name, values in self._varied.items()}
        self.reset({}, None)
        _simulators.add(self)

    def _make_batch(self) -> None:
        """Makes the batch, with threads of this process, and the views of it."""
        model = self._description
        at_new_state = bool(model.derived) and model.derived_at == "new_state"
        self._stage = int(mujoco.mjtStage.mjSTAGE_VEL if at_new_state else mujoco.mjtStage.mjSTAGE_NONE)
        # A persistent batch carries the forward pass at the new state over into its next step instead of repeating
        # it (7.6 -> 5.6 us per lane and substep of HalfCheetah); without that pass it is the slower one.
        self._batch = Batch(self.model, self.num_lanes, nthread=self._num_threads, persistent=at_new_state)
        self._qpos, self._qvel, self._control = (self._batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._varied = {name: self._batch.expand(name) for name in model.varied}
        self._diverged = self._batch.warning[:, _DIVERGED, 1]
        self._views = {"qpos": self._qpos, "qvel": self._qvel}
        self._views |= {quantity.name: self._bind_derived(quantity) for quantity in model.derived}

    def leave_batch_to_parent(self) -> None:
        """For a forked child: the next call makes a batch of its own, which goes on from where this one stands."""
        # Never freed, not even when the child's interpreter ends: that would wait for the threads.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._batch))
        self._parents_batch = self._batch

    def _own_batch(self) -> Batch:
        """The batch, one whose threads run in this process."""
        parents, self._parents_batch = self._parents_batch, None
        if parents is not None:
            self._go_on_from(self._memory(parents))
        return self._batch

    def _memory(self, batch: Batch) -> dict[str, Any]:
        """Copies of all that worlds carry from one call to the next."""
        outputs = {_OUTPUTS[quantity.kind] for quantity in self._description.derived}
        return {
            "state": batch.state.copy(),
            "warning": batch.warning.copy(),
            "fields": {name: torch.from_numpy(values.copy()) for name, values in self._varied.items()},
            "outputs": {name: batch.bind(name).copy() for name in outputs},
        }

    def _go_on_from(self, memory: dict[str, Any]) -> None:
        """Makes a batch and puts the worlds where they were."""
        self._make_batch()
        self.set_fields(memory["fields"])
        self._batch.state[:] = memory["state"]
        self._batch.warning[:] = memory["warning"]
        for name, values in memory["outputs"].items():
            # Read-only, for the batch writes it; but what a lane's last call left there is not its to know.
            output = self._batch.bind(name)
            output.flags.writeable = True
            output[:] = values
            output.flags.writeable = False

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: what to make it of, and where its worlds are."""
        batch = self._parents_batch or self._batch
        return {"made_of": (self._description, self.num_lanes, self._num_threads), "memory": self._memory(batch)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        MujocoCpuSimulator.__init__(self, *state["made_of"])
        self._go_on_from(state["memory"])

    def set_fields(self, fields: Mapping[str, Tensor]) -> None:
        batch = self._own_batch()
        for name, values in fields.items():
            self._varied[name][:] = values.numpy()
        if any(name in CONSTANTS_FOLLOW for name in fields):
            batch.set_const()

    def state(self) -> State:
        return {name: torch.from_numpy(values) for name, values in self.state_arrays().items()}

    def state_arrays(self) -> dict[str, np.ndarray]:
        # The bound arrays are live and strided: copies are both a snapshot and contiguous.
        return {name: view.copy(order="C") for name, view in self._views.items()}

    def reset(self, initial: State, lanes: Tensor | None) -> None:
        """Puts worlds into `qpos` and `qvel` of `initial`, at time 0, cold start, zero control: a fresh `MjData`.

        Derived quantities follow from these two, so `initial` may hold them but they are not read.
        """
        ids = None if lanes is None else np.flatnonzero(lanes.numpy())
        rows = slice(None) if ids is None else ids
        batch = self._own_batch()
        with _silent_mujoco:
            batch.reset(ids, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
            for name, view in (("qpos", self._qpos), ("qvel", self._qvel)):
                if name in initial:
                    view[rows] = initial[name].numpy()[rows]
            batch.forward(ids)

    def step(self, control: Tensor, lanes: Tensor | None) -> None:
        self.step_arrays(control.numpy(), None if lanes is None else np.flatnonzero(lanes.numpy()))

    def step_arrays(self, control: np.ndarray, ids: np.ndarray | None = None) -> None:
        batch = self._own_batch()
        if control.shape != self._control.shape:
            self._description.check_control(control.shape, self._control.shape)
        self._control[:] = control
        with _silent_mujoco:
            batch.step(ids, nstep=self._description.frame_skip, stage=self._stage)

    def _bind_derived(self, quantity: Derived) -> np.ndarray:
        """A live view `[lane, 3]`."""
        output = self._batch.bind(_OUTPUTS[quantity.kind])
        if quantity.kind == "subtree_velocity":
            start = int(self.model.sensor(quantity.name).adr[0])
            return output[:, start : start + 3]
        return output[:, self.model.body(quantity.body).id]

    def failed(self) -> Tensor:
        return torch.from_numpy(self.failed_array())

    def failed_array(self) -> np.ndarray:
        # The counters survive until the lane is reset, and time does not help: MuJoCo restarts it within the step.
        return np.logical_or.reduce(self._diverged, 1)
