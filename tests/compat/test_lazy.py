"""A drop-in imports its peer when it is first asked for, not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMPAT = Path(__file__).resolve().parents[2] / "ssl_kernels" / "compat"
PEERS = {"lightly", "open_clip", "pytorch_metric_learning", "solo", "sentence_transformers", "timm", "moco", "tsimcne"}


def test_no_peer_is_imported():
    names = sorted(path.stem for path in COMPAT.glob("*.py") if path.stem != "__init__")
    assert {"lightly", "open_clip", "pml", "sentence_transformers", "solo", "supcontrast"} <= set(names)
    code = "\n".join([*(f"import ssl_kernels.compat.{name}" for name in names), "import sys; print(*sys.modules)"])
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=COMPAT.parents[1]
    )
    assert not PEERS & set(ran.stdout.split())
