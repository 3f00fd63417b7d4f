#!/usr/bin/env bash
# Runs the GPU tests and benchmarks on this machine and leaves their output, JSON and plots in a folder.
#
#   scripts/gpu_check.sh [FOLDER]              default: gpu-check
#   PYTHON=python3.12 scripts/gpu_check.sh     the interpreter whose torch is to be used
#   WHEELS=DIR scripts/gpu_check.sh            takes missing packages from DIR, for a machine without internet
#   QUICK=1 scripts/gpu_check.sh               tests and small benchmarks only, no training
#   PARTS="tests benchmarks" scripts/gpu_check.sh     only these of tests, benchmarks, training; a folder can be added to
#
# Nothing is installed over what the machine has: missing packages go into a virtual environment in the folder that
# sees the machine's own ones and keeps their versions, torch's before all.
set -uo pipefail
case ${1:-} in -*)
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
if [ $# -gt 1 ]; then
    echo "error: one folder is taken, not $#: $*"
    exit 2
fi
parts=" ${PARTS:-tests benchmarks training} "
for part in $parts; do
    case $part in
    tests | benchmarks | training) ;;
    *) echo "error: PARTS is '$PARTS'; it holds tests, benchmarks and training, separated by spaces."; exit 2 ;;
    esac
done
[ -z "${QUICK:-}" ] || parts=${parts/ training / }
if [ -z "${parts// /}" ]; then
    echo "error: nothing is left to run: PARTS is '${PARTS:-}', and QUICK=1 leaves the training out."
    exit 2
fi
# Folders are meant from where the caller is; the rest happens in the clone.
out=$(realpath -m "${1:-gpu-check}")
[ -z "${WHEELS:-}" ] || WHEELS=$(realpath -m "$WHEELS")
python=${PYTHON:-python3}
case $python in */*) python=$(realpath -s "$python") ;; esac
command -v "$python" >/dev/null || { echo "error: there is no interpreter '$python'; name one with torch: PYTHON=..."; exit 2; }
cd "$(dirname "$0")/.."

"$python" - <<'CHECK' || exit 2
import sys

if sys.version_info < (3, 11):
    sys.exit(f"error: {sys.executable} is Python {sys.version.split()[0]}; metarl needs 3.11 or later.")
try:
    import torch
except ImportError:
    sys.exit(f"error: {sys.executable} has no torch; install torch 2.11 or later with CUDA, or name another PYTHON=...")
if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
    sys.exit(f"error: torch {torch.__version__} is too old; metarl needs 2.11 or later.")
if not torch.cuda.is_available():
    sys.exit(f"error: torch {torch.__version__} finds no CUDA device here.")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}")
CHECK

mkdir -p "$out" || exit 2
# Pins: the machine's own version where it has a package, else the tested one.
"$python" - constraints.txt >"$out/constraints.txt" <<'PINS'
import sys
from importlib.metadata import PackageNotFoundError, version

for line in open(sys.argv[1]):
    name, separator, pin = line.split("#")[0].strip().partition("==")
    if separator:
        try:
            pin = version(name)
        except PackageNotFoundError:
            pass
        print(f"{name}=={pin}")
PINS
[ -x "$out/venv/bin/python" ] || "$python" -m venv --system-site-packages --without-pip "$out/venv" || exit 2
run="$out/venv/bin/python"
# An interpreter that is itself in a virtual environment has its packages there, not in the system.
"$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
    >"$("$run" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/machine.pth"
source=()
[ -z "${WHEELS:-}" ] || source=(--no-index --find-links "$WHEELS")
"$python" -m pip --python "$run" install -q --disable-pip-version-check "${source[@]}" -c "$out/constraints.txt" \
    'gymnasium[mujoco]' mujoco mujoco-warp warp-lang tensorboard tyro rich jaxtyping matplotlib pillow imageio \
    imageio-ffmpeg pytest || { echo "error: the missing packages could not be installed (see above)"; exit 2; }

export PYTHONPATH=$PWD WARP_CACHE_PATH="$out/warp-cache"
# Products of float32 numbers are meant to be that; NVIDIA's containers switch TF32 on.
unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE NVIDIA_TF32_OVERRIDE
failed=()
step() { # NAME COMMAND...: runs it, keeps its output, goes on if it fails
    local name=$1
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$out/$name.txt"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}
benchmark() { # NAME ARGUMENTS...
    local name=$1
    shift
    step "$name" "$run" scripts/benchmark.py "$@" --device cuda --json "$out/$name.json" --plot "$out/$name.png"
}

compare() { # FIGURE FAMILY SEEDS ARGUMENTS...: the same runs on the GPU and on the CPU, and one figure of both
    local figure=$1 family=$2 seeds=$3 runs=() device seed
    shift 3
    for device in cuda cpu; do
        for seed in $seeds; do
            local name=$figure-$device-seed$seed
            rm -rf "${out:?}/$name"
            step "train-$name" "$run" scripts/train.py maml-trpo --family "$family" --device "$device" --seed "$seed" \
                --run-dir "$out/$name" "$@"
            runs+=("$out/$name")
        done
    done
    step "evaluate-$figure" "$run" scripts/evaluate.py "${runs[@]}" --device cpu --plot "$out/$figure.png" \
        --json "$out/$figure.json"
}
if [[ $parts == *" tests "* ]]; then
    step tests "$run" -m pytest -q -p no:cacheprovider -m gpu -rP tests/gpu
fi
if [[ $parts == *" benchmarks "* ]]; then
    benchmark iteration-halfcheetah iteration --family halfcheetah-vel
    benchmark iteration-navigation iteration --family navigation-2d --meta-batch-size 20
    if [ -n "${QUICK:-}" ]; then
        benchmark rollout-halfcheetah rollout --family halfcheetah-vel --worlds 64 1024 16384 --repeats 2
        benchmark rollout-navigation rollout --family navigation-2d --worlds 1024 65536 --repeats 2
    else
        benchmark rollout-halfcheetah rollout --family halfcheetah-vel
        benchmark rollout-navigation rollout --family navigation-2d --worlds 1024 16384 131072 524288 1048576
        # At 16,384 worlds or more, updating is to take no longer than sampling.
        benchmark iteration-16384-worlds iteration --family halfcheetah-vel --meta-batch-size 64 --episodes-per-task 256
    fi
fi
if [[ $parts == *" training "* ]]; then
    compare navigation navigation-2d "0 1 2"
    step draw-navigation "$run" scripts/visualize.py "$out/navigation-cuda-seed0"
    compare halfcheetah halfcheetah-vel@maml2017 0 --iterations 100
fi
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]} (output in $out)"
    exit 1
fi
echo "All passed; output, JSON and plots are in $out"
