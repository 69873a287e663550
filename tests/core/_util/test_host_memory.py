"""What this process may take yet, by made-up files of Linux."""

import pytest
import torch

from lora_lab._util import host_memory
from lora_lab._util.host_memory import HostRoom, available_memory
from lora_lab.errors import AdapterError

MEMINFO = "MemTotal:       13290472 kB\nMemAvailable:   12000000 kB\nHugePages_Total:       0\n"
STAT = "anon 5\ninactive_file 300\nactive_file 20\n"
V2 = {
    "sys/fs/cgroup/memory.max": "2147483648\n",
    "sys/fs/cgroup/memory.current": "147483648\n",
    "sys/fs/cgroup/memory.stat": STAT,
}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "147483648\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\nactive_file 2\ntotal_inactive_file 300\n"
    "total_active_file 20\n",
}
WHOLE = 12_000_000 * 1024


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, WHOLE),
        (V2, 2_000_000_320),
        (V1, 2_000_000_320),
        (V2 | {"sys/fs/cgroup/memory.max": "max\n"}, WHOLE),
        (V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, WHOLE),
        (V2 | {"sys/fs/cgroup/memory.current": "9999999999\n"}, 0),
        ({"sys/fs/cgroup/memory.max": "5\n"}, WHOLE),
        ({"proc/meminfo": "MemTotal: 5 kB\n"}, None),
    ],
)
def test_what_is_left(monkeypatch, tmp_path, files, expected):
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(host_memory, "_ROOT", tmp_path)
    assert available_memory() == expected


def test_a_7b_in_float16_on_colabs_host(monkeypatch):
    monkeypatch.setattr(host_memory, "available_memory", lambda: int(12.7e9))
    # 6.74 billion numbers of Llama-2-7B, two bytes each; no memory is taken for them here.
    weights = [torch.empty(1, dtype=torch.float16).expand(6_740_000_000)]
    line = r"W₀ takes 12\.6 GiB or more of the computer's memory, and 11\.8 GiB are available; fix"
    with pytest.raises(AdapterError, match=line):
        HostRoom("W₀", "fix").take(weights)
    HostRoom("W₀", "fix").take(t.to("meta") for t in weights)
    HostRoom("W₀", "fix").take([weights[0][:6_000_000_000]])
