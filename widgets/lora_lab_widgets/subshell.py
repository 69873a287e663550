"""Messages of the browser that need not wait for the end of a running cell.

Other private names of ipykernel (seen on 7.4) are not used; of ipywidgets' see `embedded_page.py`.
"""

from __future__ import annotations

from typing import Any

import ipywidgets

# ipykernel's note on a comm (7.4): the thread that gets the browser's next message.
_NOTE = "_reply_subshell_id"


class OnSubshell(ipywidgets.Widget):
    """A widget that the browser reaches beside a busy cell, from its first message on.

    JupyterLab sends a widget's messages to a thread of their own. But ipykernel 7.4 hands them to
    the thread from which the widget last sent something, which is the main one when a cell made or
    changed it: after "Run all" the panels would stand still, and Stop would wait, until the last
    cell ends. A page that was closed takes its thread with it, and another one's message would be
    heard by nobody. So the note is taken away after whatever is sent; a kernel that has no such
    notes routes as it always does.
    """

    def open(self) -> None:
        """Make the widget known to the browser."""
        super().open()
        self._let_the_browser_choose()

    def _send(self, msg: dict[str, Any], buffers: Any = None) -> None:
        super()._send(msg, buffers)
        self._let_the_browser_choose()

    def _let_the_browser_choose(self) -> None:
        getattr(self.comm, "__dict__", {}).pop(_NOTE, None)
