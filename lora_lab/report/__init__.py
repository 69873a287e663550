"""Reports: one self-contained HTML page each."""

from lora_lab.report.inspection import write_inspection
from lora_lab.report.run import Sample, write_report, write_run_report

__all__ = ["Sample", "write_inspection", "write_report", "write_run_report"]
