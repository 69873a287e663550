"""`python -m benchmarks` (or `make bench`): every benchmark, one after another."""

from benchmarks import (
    adalora,
    adapters,
    closed_form,
    dry_run,
    evaluation,
    kernel_answers,
    latency,
    many,
    prefix,
    reading,
    spectra,
    step_slider,
    training_loop,
    workbench_showing,
)

adapters.main([])
latency.main([])
prefix.main([])
adalora.main([])
spectra.main()
closed_form.main()
dry_run.main()
step_slider.main([])
training_loop.main([])
workbench_showing.main([])
kernel_answers.main([])
reading.main()
many.main([])
evaluation.main([])
