"""Ctrl-C twice ends a process also where Python cannot answer: in a native call that does not return."""

import os
import signal
import subprocess
import sys
import time

import pytest
import workflow

STUCK = """
import ctypes
from jaxprune.training.processes import Stop
with Stop():
    print("ready", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second waits for ever
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros is glibc's")
def test_a_second_interrupt_ends_a_native_call():
    environment = os.environ | {"PYTHONPATH": str(workflow.ROOT)}
    firsts = (signal.SIGINT, signal.SIGTERM)
    processes = [
        subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in firsts
    ]
    try:
        for process, first in zip(processes, firsts, strict=True):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(first)
        time.sleep(1.5)
        assert [process.poll() for process in processes] == [None, None]  # one signal asks, it does not kill
        for process in processes:
            process.send_signal(signal.SIGINT)
        assert [process.wait(timeout=10) for process in processes] == [130, 130]
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
