"""What was learned: comparisons of two starts, reports as one HTML file, pictures of structures."""

from eutectic.evaluate.comparison import (
    Curve,
    DemoResults,
    PretrainingSummary,
    Run,
    SetSummary,
    TaskComparison,
    Trial,
    summarise,
)
from eutectic.evaluate.report import write_demo_report, write_finetune_report
from eutectic.evaluate.table import comparison_table

__all__ = [
    "Curve",
    "DemoResults",
    "PretrainingSummary",
    "Run",
    "SetSummary",
    "TaskComparison",
    "Trial",
    "comparison_table",
    "summarise",
    "write_demo_report",
    "write_finetune_report",
]
