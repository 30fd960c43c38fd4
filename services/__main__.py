"""`python -m services` is the command `lineshaft`, whatever is on the path."""

import sys

from services.cli import main

sys.exit(main())
