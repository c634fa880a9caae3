"""Makes edits.py beside this file importable: the tests of a folder without __init__ know no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
