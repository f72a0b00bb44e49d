"""Maps of many photographs as files, whatever makes them: which becomes which file, and what may be left as it is.

How a map is written is the business of `distilldepth.formats`.
"""

from __future__ import annotations
