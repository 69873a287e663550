from .comparison_page import write_comparison_report as write_comparison_report
from .inspect import inspect_adapter as inspect_adapter
from .inspection import Inspection as Inspection
from .inspection_page import write_inspection as write_inspection
from .run_page import write_report as write_report
from .run_page import write_run_report as write_run_report
