"""Imported before torch: what a benchmark computes in its own process has the threads of a replica's."""

from services.threads import use_all_cores

use_all_cores(spin=True)
