"""The `tract` command as `python -m tract`, for launchers that start modules."""

import sys

from tract.cli import main

sys.exit(main())
