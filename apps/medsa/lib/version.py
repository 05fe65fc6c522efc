"""The version of this code, as adapters and `/info/` name it."""

VERSION = "0.1.0"
