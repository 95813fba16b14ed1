"""Pre-train one small backbone on two data sets at once, each with its own heads.

python examples/3_pretrain_jointly.py
"""

from pathlib import Path
from tempfile import mkdtemp

import eutectic

out = Path(mkdtemp(prefix="eutectic-"))
settings = eutectic.PretrainSettings.model_validate(
    {
        "sets": {
            "molecules": {"store": "molecules", "validation": 32},
            "metal_slabs": {"store": "metal_slabs", "validation": 16},
        },
        "backbone": {"name": "painn", "settings": {"width": 32, "layers": 2}},
        "graph": {"cutoff": 5.0, "max_neighbours": 12},
        "optimiser": {"learning_rate": 3e-3, "warmup_steps": 5},
        "train": {"steps": 20, "batch_size": 16, "evaluate_every": 10},
    }
)
result = eutectic.pretrain(settings, out / "run")
print(eutectic.load(result.model))
print("report:", out / "run" / "report.html")
