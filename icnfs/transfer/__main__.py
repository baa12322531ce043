"""`python -m icnfs.transfer FD`; see `process`."""

from __future__ import annotations

import logging
import os
import sys

from icnfs.transfer.process import main

if __name__ == "__main__":
    code = main(sys.argv)
    logging.shutdown()
    os._exit(code)  # threads that hang in a provider's disk must not keep the process alive
