"""Somebody who agrees to everything: goes where a login sends him, and back.

python browser.py URL
"""

import sys
import urllib.request

with urllib.request.urlopen(sys.argv[1], timeout=60) as page:
    page.read()
