"""The `icnfs` command: verbs, and the entry points that packaging names.

Importing this package loads no verb, so that each starts with what it needs alone.
"""

from icnfs.cli.app import main, mount_helper

__all__ = ["main", "mount_helper"]
