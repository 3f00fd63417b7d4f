"""A script on the emulated CUDA device, where there is no GPU: slow, to see that it works, and learns.

python tests/gpu/emulate.py scripts/train.py maml-trpo --family navigation-2d --device cuda
"""

import runpy
import sys
from pathlib import Path

from emulated_cuda import emulated_cuda

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0)
    if not Path(sys.argv[1]).is_file():
        print(f"error: there is no script {sys.argv[1]}.", file=sys.stderr)
        sys.exit(2)
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    with emulated_cuda():
        runpy.run_path(sys.argv[0], run_name="__main__")
