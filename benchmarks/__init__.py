"""How fast, how small, how exact: ``python -m benchmarks`` asks here, ``make gpu`` on a machine with an NVIDIA GPU.

``harness`` measures, ``providers`` are what is measured, ``questions`` has one file a question, ``report`` writes
tables, CSV and plots into ``results/<machine>-<date>/``. A figure that was not measured is never written.
"""
