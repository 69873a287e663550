"""Can the Hugging Face hub be reached? Asked once, with a short limit, before anything waits."""

from __future__ import annotations

REACH_SECONDS = 3.0


def hub_reachable() -> bool:
    """Return whether the hub answers at all within `REACH_SECONDS`.

    Without this, a machine off the network waits about 25 s in the hub client's retries.
    `HF_HUB_OFFLINE=1` counts as not reachable; proxies are the hub client's own.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_SECONDS)
    except Exception:  # any failure of the transport means the same: not reachable
        return False
    return True


def hub_host() -> str:
    """Return the hub's address, for messages."""
    from huggingface_hub import constants

    return constants.ENDPOINT.removeprefix("https://")
