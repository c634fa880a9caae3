"""`python -m svdcli`, for machines where the `svd` command is not on the PATH."""

import sys

from svdcli.cli.app import main

sys.exit(main())
