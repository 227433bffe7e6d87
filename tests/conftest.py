"""Every test runs offline and on one thread, also where `make test` starts a process a core; a connection to anything
but this machine is an error."""

import os
import socket

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


_connect = socket.socket.connect
LOOPBACK = ("127.", "::1", "localhost")


def _connect_here_only(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):  # type: ignore[index]
        raise OSError(f"tests run offline, but something tried to reach {address}")
    _connect(self, address)  # type: ignore[arg-type]


socket.socket.connect = _connect_here_only  # type: ignore[method-assign]
