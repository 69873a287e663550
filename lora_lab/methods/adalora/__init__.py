"""AdaLoRA: ΔW = s·PΛQ, whose weakest triplets are cut while it is trained."""
