"""How A and B start: at random, or from W₀'s own strongest directions.

PiSSA and OLoRA start at a part of W₀ and train the rest away from it. Their papers take that part
out of W₀; here W₀ stays as it is and ΔW = s(BA − B₀A₀) with the start kept frozen, which is the
same function, and nothing has to be given back.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from lora_lab.spectra.directions import top_directions

_PISSA = re.compile(r"pissa(?:_niter_(\d+))?")


def fill(A: Tensor, B: Tensor, how: bool | str, W: Tensor, scale: float) -> None:
    """Initialise A (r, in) and B (out, r) in place.

    Args:
        A, B: to be filled.
        how: True: A kaiming-uniform(√5), B zero, as loralib and PEFT do; "gaussian", PEFT's:
            A ~ N(0, 1/r²), B zero; False: both kaiming-uniform; "pissa": A = √S·Vᵀ, B = U√S of
            W₀/s's r strongest directions (Meng et al., 2024, equations 2 and 3);
            "pissa_niter_n": the same from a randomised SVD of n iterations; "olora": A = R and
            B = Q of W₀ = QR, the first r of each (Büyükakyüz, 2024).
        W: W₀ (out, in); looked at by the last three only.
        scale: s.
    """
    r = A.shape[0]
    if how == "olora":
        Q, R = torch.linalg.qr(W.float())
        A.copy_(R[:r])
        B.copy_(Q[:, :r])
    elif isinstance(how, str) and (match := _PISSA.fullmatch(how)):
        if iterations := match[1]:
            U, S, V = torch.svd_lowrank(W.float(), q=r, niter=int(iterations))
            Vt = V.T
        else:
            U, S, Vt = top_directions(W.float(), r)
        root = (S / scale).sqrt()
        A.copy_(root[:, None] * Vt)
        B.copy_(U * root)
    elif how == "gaussian":
        nn.init.normal_(A, std=1 / r)
    else:
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # U(−1/√in, 1/√in)
        if how is False:
            nn.init.kaiming_uniform_(B, a=math.sqrt(5))
