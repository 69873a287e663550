"""`python -m benchmarks` (or `make bench`): every benchmark, one after another."""

from benchmarks import import_time, spectra, training_step, workbench_showing

training_step.main([])
spectra.main()
import_time.main()
workbench_showing.main([])
