"""The `tract` command as `python -m tract`."""

import sys

from tract.cli.main import main

sys.exit(main())
