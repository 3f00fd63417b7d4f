"""MuJoCo Warp behind `envs.family.Simulator`: every world on the GPU, state shared with torch, one captured graph.

Positions, velocities and controls are torch views of Warp's own arrays; nothing is copied to the host but one number
per `reset` that tells whether all contacts found room. On Warp's CPU device the same code runs, which is how it is
tested without a GPU. Differences from the CPU engine: float32; all worlds cost physics, a finished one is put back
where it was; a diverged world keeps its non-finite numbers until it is reset; at most `SOLVER_ITERATIONS` solver
iterations.

On CUDA, Warp works on a stream of its own that torch made, ordered against torch's current one around every call;
inside a graph that torch is capturing it works on that graph's stream instead (`capturing`).
"""

# MuJoCo's and Warp's classes come without usable type stubs.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

import mujoco
import torch
from torch import Tensor

from envs.physics.compile import build_model, mujoco_is_too_old, needs_newer_mujoco
from envs.physics.model import CONSTANTS_FOLLOW, Derived, MujocoModel

if TYPE_CHECKING:
    from envs.family import State

try:
    import mujoco_warp as mjw
    import warp as wp
except (ImportError, AttributeError) as error:
    if mujoco_is_too_old():
        raise needs_newer_mujoco() from error
    raise ImportError(
        f"GPU physics needs MuJoCo Warp, and {error.name or 'a part of it'} is missing here: run "
        "`pip install -c constraints.txt -e '.[gpu]'` in the clone."
    ) from error

SOLVER_ITERATIONS = 8
"""Newton iterations at most. They are unrolled and finished worlds leave early: whether a loop with its condition on
the device may be part of a graph that torch captures is untested. Of 800,000 substeps of HalfCheetah one needed 7, none
more; needing more voids the episode."""

_OVERFLOW = mjw.OverflowType
_NO_ROOM = (_OVERFLOW.NEFC, _OVERFLOW.NJMAX_NNZ, _OVERFLOW.BROADPHASE, _OVERFLOW.NARROWPHASE)
_VOID = (*_NO_ROOM, _OVERFLOW.CCD, _OVERFLOW.ITERATIONS)
"""Flags that mean a world's physics is not to be trusted; the first four, that contacts found no room."""
_CARRIED = ("qpos", "qvel", "act", "time", "qacc_warmstart")
"""What a world carries from one step to the next."""

_HUGE = 1e10
"""Where MuJoCo itself calls a number diverged (mjMAXVAL)."""

_CONSTANTS = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0")
"""What `set_const` writes: one world's values would serve all if they were not listed as per-world."""


_warp_streams: dict[int, Any] = {}
"""Warp's objects for torch's streams, by handle. Kept for good: when one dies Warp forgets the stream, and torch hands
out the same few streams over and over."""


def _stream_of_warp(stream: torch.cuda.Stream) -> Any:
    if stream.cuda_stream not in _warp_streams:
        _warp_streams[stream.cuda_stream] = wp.stream_from_torch(stream)
    return _warp_streams[stream.cuda_stream]


def _start_warp() -> None:
    """Warp announces itself and every kernel it loads; only what is wrong is worth a line of a training's output."""
    if wp.config.log_level == wp.LOG_INFO:
        # On a machine without CUDA, Warp warns of just that, and its CPU device was asked for.
        wp.config.log_level = wp.LOG_WARNING if torch.cuda.is_available() else wp.LOG_ERROR
    wp.init()


@contextlib.contextmanager
def _says_when_it_takes_long() -> Iterator[None]:
    """Compiling kernels takes half a minute the first time, and nothing else would say so."""

    def say() -> None:
        where = wp.config.kernel_cache_dir
        print(
            "MuJoCo Warp compiles its kernels for this model (half a minute, once per model and version); "
            f"it keeps them in {where} ...",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(3.0, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@final
class MujocoWarpSimulator:
    """`num_lanes` worlds of one model. State: `qpos [lane, nq]`, `qvel [lane, nv]` and the model's derived quantities.

    Everything is float32 on `device`; `envs.physics.model` says which instant the derived quantities belong to. A world
    has failed if a position or velocity is not finite or huge, or if its contacts found no room in the buffers: then
    the buffers are doubled at the next `reset`, with a warning.

    Args:
        model: The model as its family describes it.
        num_lanes: Number of worlds.
        device: "cuda", or "cpu" for Warp's own CPU device.

    Attributes:
        memory_generation: Counts how often the buffers were made anew; graphs captured before are void.
    """

    def __init__(self, model: MujocoModel, num_lanes: int, device: torch.device) -> None:
        self.num_lanes = num_lanes
        self.dtype = torch.float32
        _start_warp()
        self.device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
        self._warp_device = wp.device_from_torch(self.device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._warp_stream = _stream_of_warp(self._stream) if self._stream else None
        self.model = build_model(model)
        self._description = model
        if self.model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
            self.model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON  # MuJoCo Warp has no PGS
        self.model.opt.iterations = min(self.model.opt.iterations, SOLVER_ITERATIONS)
        self._contacts, self._constraints = model.contacts_per_world, model.constraints_per_world
        self.memory_generation = 0
        self._fields: dict[str, Tensor] = {}
        self._allocate()
        self.reset({}, None)

    def _allocate(self) -> None:
        """Makes model and data with room for the present number of contacts, and captures the graphs."""
        varied = self._description.varied
        per_world = [name for name in varied if not name.startswith("opt.")]
        if any(name in CONSTANTS_FOLLOW for name in varied):
            per_world += _CONSTANTS
        with self._ordered(), _says_when_it_takes_long():
            self._warp_model = m = mjw.put_model(self.model, batch_sizes=dict.fromkeys(per_world, self.num_lanes))
            # Read by the kernels' generators: both must be set before the first step.
            m.opt.warn_overflow = 0
            m.opt.graph_conditional = False
            for name in set(varied) - set(per_world):
                self._expand_option(name.removeprefix("opt."))
            self._data = d = mjw.make_data(
                self.model, nworld=self.num_lanes, nconmax=self._contacts, njmax=self._constraints
            )
            names = (*_CARRIED, "ctrl", "overflow")
            self._arrays: dict[str, Tensor] = {name: wp.to_torch(getattr(d, name)) for name in names}
            self._sources = {quantity.name: self._source(quantity) for quantity in self._description.derived}
            self._derived = {name: source.clone() for name, source in self._sources.items()}
            self._mask = torch.ones(self.num_lanes, dtype=torch.bool, device=self.device)
            self._warp_mask = wp.from_torch(self._mask, dtype=wp.bool)
            self._varied = {name: wp.to_torch(self._field(name)) for name in varied}
            self.nominal_fields = {name: values[0].clone() for name, values in self._varied.items()}
            for name, values in self._fields.items():
                self._varied[name].copy_(values)
            if any(name in CONSTANTS_FOLLOW for name in self._fields):
                mjw.set_const(m, d)
            self._advance = self._captured(self._substeps)
            self._clear = self._captured(lambda: mjw.reset_data(m, d, reset=self._warp_mask))
            self._measure = self._captured(self._kinematics)
        self.memory_generation += 1

    @contextlib.contextmanager
    def _ordered(self) -> Iterator[None]:
        """Warp's work inside comes after what torch has queued and before what it will queue."""
        if self._stream is None or torch.cuda.is_current_stream_capturing():
            with wp.ScopedDevice(self._warp_device):
                yield
            return
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with wp.ScopedDevice(self._warp_device), wp.ScopedStream(self._warp_stream), torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def _expand_option(self, name: str) -> None:
        values = wp.to_torch(getattr(self._warp_model.opt, name)).expand(self.num_lanes, -1).contiguous()
        setattr(self._warp_model.opt, name, wp.from_torch(values, dtype=wp.vec3))

    def _field(self, name: str) -> Any:
        holder = self._warp_model.opt if name.startswith("opt.") else self._warp_model
        return getattr(holder, name.removeprefix("opt."))

    def _source(self, quantity: Derived) -> Tensor:
        """Warp's own memory of a derived quantity, `[lane, 3]`."""
        arrays = {"body_position": "xpos", "subtree_com": "subtree_com", "subtree_velocity": "subtree_linvel"}
        return wp.to_torch(getattr(self._data, arrays[quantity.kind]))[:, self.model.body(quantity.body).id]

    def _substeps(self) -> None:
        for _ in range(self._description.frame_skip):
            mjw.step(self._warp_model, self._data)
        if self._description.derived_at == "new_state":
            self._kinematics()

    def _kinematics(self) -> None:
        """Evaluates what the derived quantities need at the present state."""
        if self._description.derived:
            mjw.kinematics(self._warp_model, self._data)
            mjw.com_pos(self._warp_model, self._data)
        if any(quantity.kind == "subtree_velocity" for quantity in self._description.derived):
            mjw.com_vel(self._warp_model, self._data)
            mjw.subtree_vel(self._warp_model, self._data)

    def _captured(self, function: Callable[[], None]) -> Callable[[], None]:
        """`function` as one launch of a captured graph; inside a graph that torch is capturing, as part of that."""
        function()  # compiles: a capture may not
        # Kernels go to Warp's current stream, which `_ordered` has set; a capture alone would not change it.
        with wp.ScopedCapture(stream=self._warp_stream) as capture:
            function()

        def launch() -> None:
            with self._ordered():
                if self._stream is not None and torch.cuda.is_current_stream_capturing():
                    function()
                else:
                    wp.capture_launch(capture.graph, stream=self._warp_stream)

        return launch

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Put around the body of a `torch.cuda.graph` that steps these worlds, so that Warp knows of the capture."""
        stream = _stream_of_warp(torch.cuda.current_stream(self.device))
        with wp.ScopedDevice(self._warp_device), wp.ScopedStream(stream, sync_enter=False):
            wp.capture_begin(stream=stream, force_module_load=False, external=True)
            try:
                yield
            finally:
                wp.capture_end(stream=stream)

    def set_fields(self, fields: Mapping[str, Tensor]) -> None:
        for name, values in fields.items():
            self._varied[name].copy_(values)
        self._fields = {name: values.clone() for name, values in self._varied.items()}
        if any(name in CONSTANTS_FOLLOW for name in fields):
            with self._ordered():
                mjw.set_const(self._warp_model, self._data)

    def state(self) -> State:
        return {"qpos": self._arrays["qpos"].clone(), "qvel": self._arrays["qvel"].clone()} | {
            name: value.clone() for name, value in self._derived.items()
        }

    def reset(self, initial: State, lanes: Tensor | None) -> None:
        """Puts worlds into `qpos` and `qvel` of `initial`, at time 0, cold start, zero control.

        Derived quantities follow from these two, so `initial` may hold them but they are not read.
        """
        self._make_room()
        self._mask.copy_(torch.ones_like(self._mask) if lanes is None else lanes)
        self._clear()
        for name in ("qpos", "qvel"):
            if name in initial:
                self._put(self._arrays[name], initial[name])
        self._measure()
        for name, source in self._sources.items():
            self._put(self._derived[name], source)

    def step(self, control: Tensor, lanes: Tensor | None) -> None:
        self._description.check_control(control.shape, self._arrays["ctrl"].shape)
        kept = [*(self._arrays[name] for name in _CARRIED), *self._derived.values()]
        before = None if lanes is None else [value.clone() for value in kept]
        self._arrays["ctrl"].copy_(control)
        # Warp would clamp a NaN to the end of the control range and go on as if nothing were wrong.
        self._arrays["qvel"].masked_fill_(~torch.isfinite(control).all(-1, keepdim=True), torch.nan)
        self._advance()
        for name, source in self._sources.items():
            self._derived[name].copy_(source)
        if lanes is not None and before is not None:
            for value, old in zip(kept, before, strict=True):
                value.copy_(torch.where(lanes.reshape(-1, *[1] * (value.ndim - 1)), value, old))

    def failed(self) -> Tensor:
        healthy = (self._arrays["overflow"] & sum(_VOID)) == 0
        for name in ("qpos", "qvel"):
            # NaN compares false.
            healthy &= (self._arrays[name].abs() < _HUGE).all(-1)
        return ~healthy

    def _put(self, target: Tensor, values: Tensor) -> None:
        """Writes the rows of the worlds that are being reset."""
        target.copy_(torch.where(self._mask[:, None], values, target))

    def _make_room(self) -> None:
        """Doubles the contact buffers if the episodes before this reset overflowed them. Waits for the device."""
        seen = torch.stack([(self._arrays["overflow"] & int(flag)).any() for flag in _VOID]).tolist()
        raised = [flag for flag, there in zip(_VOID, seen, strict=True) if there]
        if not raised:
            return
        what = "+".join(str(flag.name) for flag in raised)
        if not set(raised) & set(_NO_ROOM):
            warnings.warn(f"MuJoCo Warp reports {what}; the worlds concerned count as diverged.", stacklevel=3)
            return
        self._contacts, self._constraints = 2 * self._contacts, 2 * self._constraints
        warnings.warn(
            f"MuJoCo Warp had no room for all contacts ({what}), and the worlds concerned count as diverged; from now "
            f"on there is room for {self._contacts} contacts and {self._constraints} constraints per world.",
            stacklevel=3,
        )
        kept = {name: self._arrays[name] for name in _CARRIED}
        derived = self._derived
        self._allocate()
        for name, value in kept.items():
            self._arrays[name].copy_(value)
        self._derived = derived
