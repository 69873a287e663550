"""AdaLoRA's parts: P, Λ and Q at one site, the rule that hands out ranks, the cut."""
