"""Code for a kernel that the next test goes on with."""

# The last test's workbench ends its run and goes, with all widgets.
CLEAR = """\
import ipywidgets
bench = globals().pop("wb", None)
if bench is not None and bench.run is not None:
    bench.run.stop()
    bench.run.wait(60)
ipywidgets.Widget.close_all()
del bench"""
