"""Measure the benefit of pre-training for a data set: fine-tune from a model and from scratch.

python examples/5_compare_starts.py
"""

from pathlib import Path
from tempfile import mkdtemp

import eutectic


def main() -> None:
    out = Path(mkdtemp(prefix="eutectic-"))
    study = eutectic.compare(
        "md_aspirin",
        ["forces"],
        out=out / "study",
        model="eutectic-small",
        seeds=1,
        steps=20,
        batch_size=4,
        n_train=40,
        n_validation=16,
        n_test=16,
    )
    (task,) = study.tasks
    print(f"from scratch {task.scratch:.0f}, pre-trained {task.pretrained:.0f} {task.unit}")
    print("report:", out / "study" / "report.html")


# The runs are separate processes that import this file again, so importing it must start nothing.
if __name__ == "__main__":
    main()
