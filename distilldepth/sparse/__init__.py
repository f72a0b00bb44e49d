"""Depth known at few pixels: its files, its patterns, and what becomes of a map that is brought to it.

A sparse map is a full map in metres with 0 where nothing is known.
"""

from __future__ import annotations
