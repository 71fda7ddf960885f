"""The browser application `mstkd review`: needs the extra `review` (trame-slicer) and Python 3.10 or newer.

Of these files only `server`, `app`, `views`, `scene`, `layout` and `pages` import what the extra brings.
"""
