"""`python -m services.telemetry.keeper`, with `KeeperSettings` on its standard input."""

import sys

from services.telemetry.keeper.process import main

sys.exit(main(sys.stdin.buffer.read()))
