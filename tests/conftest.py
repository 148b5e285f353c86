"""Settings of the whole test suite."""

import signal

import torch
from hypothesis import HealthCheck, settings

#: Problems are small: a second thread gains little and waits long where the machine is busy.
torch.set_num_threads(1)
settings.register_profile(
    "resid", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("resid")

#: In the background of a shell Ctrl-C is ignored, and a test that sends it would wait for an end that never comes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
