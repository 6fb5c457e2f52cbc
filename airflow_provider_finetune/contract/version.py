"""The version of this package, which provider and runner share."""

from __future__ import annotations

__version__ = "0.1.0"
