"""Settings of the whole test suite."""

import torch
from hypothesis import HealthCheck, settings

#: Problems are small: a second thread gains little and waits long where the machine is busy.
torch.set_num_threads(1)
settings.register_profile(
    "resid", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("resid")
