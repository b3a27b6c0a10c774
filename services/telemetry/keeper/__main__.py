"""`python -m services.telemetry.keeper SETTINGS`."""

import sys

from services.telemetry.keeper.process import main

sys.exit(main(sys.argv[1]))
